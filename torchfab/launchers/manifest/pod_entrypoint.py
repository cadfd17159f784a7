"""Run torchrun in a pod, with three additions.

The exit code is that of the rank that failed first on this node (torchrun's own is always 1). The pod's termination
message holds that rank, its exit code and the time, and the same for all ranks that ended by themselves. And ranks can
save a checkpoint when they get SIGTERM.
"""

import json
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.api import SignalException, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

MESSAGE = os.environ.get("TORCHFAB_MESSAGE", "/dev/termination-log")
# End times by pid: torchrun rounds them to seconds, which is too coarse to find the node that failed first.
ended: "dict[int, float]" = {}


# Seconds for ranks to end after another one has failed; if the pod is deleted, the cluster ends the wait.
GRACE_S = float(os.environ.get("TORCHFAB_GRACE_S", "30"))
# Least seconds from the first failure to the end of a failed pod. The cluster deletes the other pods and their logs as
# soon as one has failed: the delay keeps those in which a rank failed too, but takes longer to end.
LINGER_S = float(os.environ.get("TORCHFAB_LINGER_S", "0"))
own_handler, own_close = api._terminate_process_handler, SubprocessContext._close
deleted: "list[int]" = []
signalled: "list[int]" = []  # pids of the ranks that were sent the signal
self_ended: "dict[int, int]" = {}  # exit codes of the others, by pid
local_ranks: "dict[int, int]" = {}  # local ranks, by pid


def on_deletion(signum: int, frame: "FrameType | None") -> None:
    """Handle SIGTERM, which the cluster sends when the pod is deleted."""
    deleted.append(signum)
    if len(deleted) == 1:  # a second one must not interrupt the wait for the ranks
        own_handler(signum, frame)


def close_gracefully(self: SubprocessContext, death_sig: signal.Signals, timeout: int = 30) -> None:
    """End the ranks: signal each once, wait, then SIGKILL. Replaces torchrun's own method.

    torchrun signals data loaders, too, so that a rank cannot save, and sends SIGKILL after 30 s.
    """
    ranks = [handler.proc for handler in self.subprocess_handlers.values()]
    local_ranks.update((handler.proc.pid, local) for local, handler in self.subprocess_handlers.items())
    for rank in ranks:
        code = rank.poll()
        if code is None and rank.pid not in signalled:
            signalled.append(rank.pid)
            rank.send_signal(death_sig)
        elif code is not None and rank.pid not in signalled:
            self_ended.setdefault(rank.pid, code)
    deadline = time.monotonic() + (86400 if deleted else GRACE_S)
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
    own_close(self, signal.SIGKILL, timeout)


def record_end_time(*_: object) -> None:
    """Record the time at which a child ended (SIGCHLD)."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return
    if found:
        ended.setdefault(found.si_pid, time.time())


def time_of(failure: ProcessFailure) -> float:
    """Return when a rank failed, in seconds since the epoch."""
    return ended.get(failure.pid, float(failure.timestamp + 1))


def write_message(rank: int, failure: ProcessFailure) -> None:
    """Write the pod's termination message."""
    ends = [[local_ranks[pid], code, ended.get(pid)] for pid, code in self_ended.items()]
    try:
        with open(MESSAGE, "w") as file:
            json.dump({"rank": rank, "code": failure.exitcode, "time": time_of(failure), "ends": ends}, file)
    except OSError:  # the cluster then keeps the end of the log, with torchrun's own report
        pass


def wait_for_deletion(until: float) -> None:
    """Wait until a time, in seconds since the epoch, or until the pod is deleted."""
    signal.signal(signal.SIGTERM, lambda signum, _: deleted.append(signum))
    while time.time() < until and not deleted:
        time.sleep(0.1)


def run_after(code: int) -> None:
    """Run the command of --after, if there is one, with the exit code in its environment."""
    command = os.environ.get("TORCHFAB_AFTER")
    if not command:
        return
    env = {**os.environ, "TORCHFAB_EXIT_CODE": str(code)}
    try:
        limit_s = float(os.environ.get("TORCHFAB_AFTER_S", "300"))
        argv, stdin = ["/bin/sh", "-c", command], subprocess.DEVNULL
        done = subprocess.run(argv, check=False, stdin=stdin, env=env, timeout=limit_s)
        print(f"--after ended with {done.returncode}", file=sys.stderr)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"--after failed: {error}", file=sys.stderr)


def main(args: "list[str]") -> int:
    """Run torchrun with its arguments; return the exit code of the pod."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # until torchrun handles it: process 1 would ignore it
    signal.signal(signal.SIGCHLD, record_end_time)
    api._terminate_process_handler = on_deletion
    SubprocessContext._close = close_gracefully  # type: ignore[method-assign]
    code, until = 0, 0.0
    try:
        run.main(args)
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: time_of(item[1]))
        write_message(rank, failure)
        print(error, file=sys.stderr, flush=True)
        code, until = failure.exitcode, time_of(failure) + LINGER_S
    except SignalException as error:
        code = -error.sigval
    code = code if code >= 0 else 128 - code
    wait_for_deletion(until)  # not in the handler: the exception holds torchrun's store, and with it a port
    run_after(code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
