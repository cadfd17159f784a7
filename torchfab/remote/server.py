"""Serve the launch machine: one JSON request per line on stdin, JSON answers on stdout.

An answer is framed as `\x1e<length>\n<JSON>`, so that the launch machine can skip what a login shell prints before it.
One interpreter serves all phases of a command, so phase two has the results of phase one in memory. When the launch
machine disconnects without having sent `commit`, both phases are rolled back on this node.
"""

from __future__ import annotations

import _thread
import importlib
import os
import select
import sys
import time

from torchfab.remote import job_files, light_stdlib
from torchfab.remote.light_stdlib import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from typing import Any

    from torchfab.remote.job.prepare import Preparation

MARK = b"\x1e"
OLDEST_PYTHON = (3, 9)
# How long to wait for the next request while the connection stays open, unless the request gives `patience_s`.
IDLE_TIMEOUT_S = 900
# How often a stream sends a heartbeat, unless the request gives `pulse_s`.
HEARTBEAT_S = 10.0


# Stateless operations, by name: the module and the function that handles the request.
ANSWERS = {
    "clock": ("server", "read_clock"),
    "probe": ("host.probe", "collect"),
    "connectivity": ("host.connectivity", "probe_node_0"),
    "gpu_memory": ("host.gpu_memory", "handle"),
    "status": ("job.status", "handle"),
    "evidence": ("job.evidence", "handle"),
    "stacks": ("stacks.dump", "handle"),
    "profile": ("job.profile", "begin"),
    "profile_result": ("job.profile", "result"),
    "profile_chunk": ("job.profile", "chunk"),
    "profile_remove": ("job.profile", "remove"),
    "signal": ("job.rank_signals", "handle"),
    "checkpoint": ("job.checkpoint_files", "handle"),
    "slurm_checkpoint": ("slurm.job", "find_checkpoint_files"),
    "slurm_status": ("slurm.job", "status"),
    "slurm_evidence": ("slurm.evidence", "handle"),
    "slurm_stop": ("slurm.job", "stop"),
    "slurm_forget": ("slurm.job", "forget"),
    "workdir": ("host.workdir_files", "prepare_workdir"),
    "push_env": ("host.package_environment", "push"),
    "files": ("host.workdir_files", "check"),
    "find_files": ("host.find_files", "find"),
    "file_digests": ("host.find_files", "digests"),
    "listeners": ("host.listeners", "find"),
    "end_run": ("job.run_command", "acknowledge"),
    "call_outcomes": ("job.call_results", "outcomes"),
    "call_chunk": ("job.call_results", "chunk"),
}
# Streaming operations: the function also gets the `Server`, and sends frames until the launch machine disconnects.
STREAMS = {
    "logs": ("job.log_reader", "handle"),
    "slurm_logs": ("slurm.logs", "handle"),
    "load": ("job.load_stream", "handle"),
    "run": ("job.run_command", "handle"),
}


class IdleTimeoutError(Exception):
    """The launch machine sent no request within the idle timeout."""


def _raise_idle_timeout(*_: object) -> None:
    raise IdleTimeoutError


class Server:
    """Serve requests until the launch machine disconnects.

    Parameters
    ----------
    bundle : str
        Source of the program that runs here, to be written into a job's folder.
    """

    def __init__(self, bundle: str) -> None:
        self.bundle = bundle
        self.preparation: Preparation | None = None
        self.started: dict[str, Any] | None = None
        self.submitted: dict[str, Any] | None = None
        self.idle_timeout_s = IDLE_TIMEOUT_S
        self.send_lock = _thread.allocate_lock()
        self.redact: Callable[[Any], Any] | None = None
        # Output of child processes and stray prints must not get between the frames.
        self.out = os.dup(1)
        os.dup2(2, 1)
        signal.signal(signal.SIGALRM, _raise_idle_timeout)

    def run(self) -> None:
        """Read requests from stdin and handle them."""
        try:
            while line := self._next_line():
                self._handle(light_stdlib.loads(line.decode()))
        except IdleTimeoutError:
            pass
        finally:
            self._rollback()

    def _next_line(self) -> bytes:
        # A launch machine that crashes, or whose network link fails, does not close the connection. Without this
        # timeout, a job that is not committed would run until the kernel gives up the connection, hours later.
        signal.alarm(self.idle_timeout_s)
        line = sys.stdin.buffer.readline()
        signal.alarm(0)
        return line

    def _rollback(self) -> None:
        if self.started is not None:
            self.on_stop({**self.started, "grace_s": 2})
        if self.preparation is not None:
            self.preparation.discard()
        if self.submitted is not None:
            from torchfab.remote.slurm.submit import rollback

            rollback(self.submitted, self.submitted["slurm_id"])

    def _handle(self, request: dict[str, Any]) -> None:
        try:
            self.redact = _redactor_for(request)
            answer = self._operation(request["op"])(request)
        except BrokenPipeError:
            raise
        except Exception as error:  # a bug in torchfab or a fault of the machine: reported with its location
            import traceback

            trace = traceback.format_exc(limit=-3)
            answer = {"problems": [{"what": f"{type(error).__name__}: {error}", "fix": ""}], "trace": trace}
        self.send({**answer, "of": request.get("number")})

    def _operation(self, name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        if name in ANSWERS:
            return _function(*ANSWERS[name])
        if name in STREAMS:
            stream = _function(*STREAMS[name])
            return lambda request: self._stream(stream, request)
        return getattr(self, "on_" + name)  # type: ignore[no-any-return]

    def send(self, answer: Any) -> None:
        """Send one frame, with the job's secrets redacted.

        Parameters
        ----------
        answer : dict
            The content of the frame.
        """
        answer = self.redact(answer) if self.redact else answer
        data = light_stdlib.dumps(answer).encode("utf-8", "surrogatepass")
        data = MARK + str(len(data)).encode() + b"\n" + data
        with self.send_lock:
            while data:
                data = data[os.write(self.out, data) :]

    def _stream(self, stream: Callable[[dict[str, Any], Server], dict[str, Any]], request: dict[str, Any]) -> Any:
        """Run a stream and send heartbeats, without which a broken link could not be told from an idle one."""
        import threading

        finished = threading.Event()
        interval_s = request.get("pulse_s", HEARTBEAT_S)
        threading.Thread(target=self._send_heartbeats, args=(finished, interval_s), daemon=True).start()
        try:
            return stream(request, self)
        finally:
            finished.set()

    def _send_heartbeats(self, finished: threading.Event, interval_s: float) -> None:
        try:
            while not finished.wait(interval_s):
                self.send({"pulse": True})
        except OSError:  # disconnected: the stream notices by itself
            pass

    def is_disconnected(self, timeout_s: float = 0.0) -> bool:
        """Check whether the launch machine has closed the connection; call only while streaming.

        Parameters
        ----------
        timeout_s : float
            Seconds to wait for it. Default 0.

        Returns
        -------
        bool
            True once it is closed.
        """
        readable, _, _ = select.select([0], [], [], timeout_s)
        return bool(readable)  # the launch machine sends no data during a stream: readable means end of file

    # ---- operations that keep state in this object, called with the request; the others are in ANSWERS and STREAMS

    def on_prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run phase one: check this node and create the job's folder.

        Parameters
        ----------
        request : dict
            As `Preparation` takes it.

        Returns
        -------
        dict
            `facts` and `problems`, see `Preparation.run`.
        """
        from torchfab.remote.job.prepare import Preparation

        self.idle_timeout_s = request.get("patience_s", IDLE_TIMEOUT_S)
        self.preparation = Preparation(request)
        return self.preparation.run(self.bundle)

    def on_before(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run `--before`, between the two phases.

        Parameters
        ----------
        request : dict
            As `torchfab.remote.job.hooks.before` takes it, with the whole `process`, as for `on_start`, `mask_key` and
            `secret_patterns`.

        Returns
        -------
        dict
            `problems`, if it failed.
        """
        from torchfab.remote.job import hooks, redaction, start

        assert self.preparation is not None
        folder, process = self.preparation.folder, request["process"]
        secrets, env = start.process_environment(process, self.preparation.environ, request["secret_patterns"])
        redaction.write(folder, secrets, request["mask_key"])
        problem = hooks.before(folder, request, {**env, **secrets}, self.is_disconnected)
        if request["mask_key"]:
            problem = (redaction.load_redactor(folder, request["mask_key"]) or str)(problem)
        return {"problems": [{"what": problem, "fix": ""}]} if problem else {}

    def on_start(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run phase two: start the supervisor, which waits at the start barrier.

        Parameters
        ----------
        request : dict
            As `torchfab.remote.job.start.start` takes it.

        Returns
        -------
        dict
            As `torchfab.remote.job.start.start` returns it.
        """
        from torchfab.remote.job.start import start

        assert self.preparation is not None
        self.started = {**self.preparation.request, **request}
        return start(self.preparation.folder, request, self.preparation.environ)

    def on_commit(self, request: dict[str, Any]) -> dict[str, Any]:
        """Release the processes from the start barrier, because all nodes are ready; nothing is rolled back any more.

        Parameters
        ----------
        request : dict
            No keys.

        Returns
        -------
        dict
            As `torchfab.remote.job.start.release` returns it; empty if nothing was started.
        """
        answer = self._release() if self.started is not None else {}
        if answer.get("problems"):
            return answer
        if self.preparation is not None:
            self.preparation.release_port()
        self.preparation = self.started = self.submitted = None
        self.idle_timeout_s = IDLE_TIMEOUT_S
        return answer

    def _release(self) -> dict[str, Any]:
        from torchfab.remote.job.start import release

        assert self.started is not None
        names = [process["name"] for process in self.started["processes"]]
        return release(job_files.folder_of(self.started), names, self.started["start_timeout_s"])

    def on_rollback(self, request: dict[str, Any]) -> dict[str, Any]:
        """Undo both phases on this node: the launch has failed elsewhere, or was interrupted.

        Parameters
        ----------
        request : dict
            As for `on_stop`.

        Returns
        -------
        dict
            As `torchfab.remote.job.stop.stop` returns it, with the job's `status`.
        """
        answer = self.on_stop(request)
        if self.preparation is not None:
            self.preparation.discard()
        if not answer["left"]:
            self.on_forget(request)
        self.preparation = self.started = None
        return answer

    def on_end_ranks(self, request: dict[str, Any]) -> dict[str, Any]:
        """End the ranks of the job on this node, but not their launchers.

        Parameters
        ----------
        request : dict
            As for `on_stop`.

        Returns
        -------
        dict
            As `torchfab.remote.job.stop.end_ranks` returns it.
        """
        from torchfab.remote.job import stop

        folder = job_files.folder_of(request)
        return stop.end_ranks(folder, request["job_id"], request["node_rank"], request["grace_s"])

    def on_stop(self, request: dict[str, Any]) -> dict[str, Any]:
        """Stop the job on this node.

        Parameters
        ----------
        request : dict
            `node_dir`, `job_id`, `node_rank`, `session`, `grace_s` (seconds).

        Returns
        -------
        dict
            As `torchfab.remote.job.stop.stop` returns it, with the job's `status`.
        """
        from torchfab.remote.job import status, stop

        folder, job_id, node_rank = job_files.folder_of(request), request["job_id"], request["node_rank"]
        report = stop.stop(folder, job_id, node_rank, request["session"], request["grace_s"])
        return {**report, "status": status.status(folder, job_id, node_rank)}

    def on_forget(self, request: dict[str, Any]) -> dict[str, Any]:
        """Remove the folder of a job that has ended.

        Parameters
        ----------
        request : dict
            `node_dir`, `job_id`, `node_rank`.

        Returns
        -------
        dict
            Empty.
        """
        from torchfab.remote.job import containment

        containment.remove_groups(job_files.folder_of(request))
        job_files.remove_job_folder(job_files.folder_of(request))
        return {}

    # ---- Slurm (this node has its commands)

    def on_slurm_submit(self, request: dict[str, Any]) -> dict[str, Any]:
        """Submit a job with sbatch; it is cancelled unless `commit` follows.

        Parameters
        ----------
        request : dict
            As `torchfab.remote.slurm.submit.submit` takes it, and `patience_s`.

        Returns
        -------
        dict
            As `torchfab.remote.slurm.submit.submit` returns it.
        """
        from torchfab.remote.slurm.submit import submit

        self.idle_timeout_s = request["patience_s"]
        answer = submit(request, self.bundle)
        if "slurm_id" in answer:
            self.submitted = {**request, **answer}
        return answer

    def on_slurm_signal(self, request: dict[str, Any]) -> dict[str, Any]:
        """Signal the ranks of a Slurm job.

        Parameters
        ----------
        request : dict
            As `torchfab.remote.slurm.step.run` takes it.

        Returns
        -------
        dict
            As `torchfab.remote.slurm.step.run` returns it.
        """
        from torchfab.remote.slurm import step

        return step.run(request, self.bundle, step.OVERHEAD_S)

    def on_slurm_stacks(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the stacks of the ranks of a Slurm job.

        Parameters
        ----------
        request : dict
            As `torchfab.remote.slurm.stacks.handle` takes it.

        Returns
        -------
        dict
            As `torchfab.remote.slurm.stacks.handle` returns it.
        """
        from torchfab.remote.slurm.stacks import handle

        return handle(request, self.bundle)


def read_clock(request: dict[str, Any]) -> dict[str, Any]:
    """Return this machine's time.

    Parameters
    ----------
    request : dict
        No keys.

    Returns
    -------
    dict
        `time`: seconds since the epoch.
    """
    return {"time": time.time()}


def _redactor_for(request: dict[str, Any]) -> Callable[[Any], Any] | None:
    """Return the function that redacts the secrets of the job in the request; None if there are none."""
    if not request.get("mask_key"):
        return None
    folder = request.get("folder") or (job_files.folder_of(request) if "job_id" in request else "")
    if not folder:
        return None
    from torchfab.remote.job import redaction

    return redaction.load_redactor(folder, request["mask_key"])


def _function(module: str, name: str) -> Callable[..., dict[str, Any]]:
    # Imported on demand, so that a status request does not import the modules of a launch.
    return getattr(importlib.import_module(f"torchfab.remote.{module}"), name)  # type: ignore[no-any-return]


def main(bundle: str) -> int:
    """Run the program in the mode that the command-line arguments select; without arguments, serve requests.

    Parameters
    ----------
    bundle : str
        Source of this program.

    Returns
    -------
    int
        The exit code.
    """
    if sys.argv[1:2] == ["supervise"]:
        from torchfab.remote.job.supervisor import main as supervise

        return supervise(sys.argv[2:])
    if sys.argv[1:2] == ["slurm"]:
        from torchfab.remote.slurm.task import main as supervise_task

        return supervise_task(sys.argv[2:])
    if sys.argv[1:2] == ["slurm-code"]:
        from torchfab.remote.slurm.task import exit_code

        return exit_code(int(sys.argv[2]))
    if sys.argv[1:2] == ["slurm-step"]:
        from torchfab.remote.slurm.step import main as answer_as_task

        return answer_as_task()
    try:
        Server(bundle).run()
    except BrokenPipeError:
        return 1
    return 0
