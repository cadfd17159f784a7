"""Run torchrun in a pod, with two additions: the exit code is that of the rank that failed first on this node (that of
torchrun is always 1), and the pod's termination message holds that rank, its exit code and the time.
"""

import json
import os
import signal
import sys
import time

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

MESSAGE = os.environ.get("TORCHFAB_MESSAGE", "/dev/termination-log")
# End times by pid: torchrun rounds them to seconds, which is too coarse to find the node that failed first.
ended: "dict[int, float]" = {}


def note_end(*_: object) -> None:
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return
    if found:
        ended.setdefault(found.si_pid, time.time())


def time_of(failure: ProcessFailure) -> float:
    return ended.get(failure.pid, float(failure.timestamp + 1))


def leave_message(rank: int, failure: ProcessFailure) -> None:
    try:
        with open(MESSAGE, "w") as file:
            json.dump({"rank": rank, "code": failure.exitcode, "time": time_of(failure)}, file)
    except OSError:  # the cluster then keeps the end of the log, with torchrun's own report
        pass


def main(args: "list[str]") -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # until torchrun handles it: process 1 would ignore it
    signal.signal(signal.SIGCHLD, note_end)
    code = 0
    try:
        run.main(args)
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: time_of(item[1]))
        leave_message(rank, failure)
        print(error, file=sys.stderr)
        code = failure.exitcode
    except SignalException as error:
        code = -error.sigval
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
