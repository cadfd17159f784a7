"""The conversation with the launch machine: one JSON request a line in, JSON answers out, over stdin and stdout.

An answer is framed as `\x1e<length>\n<JSON>`, so that what a login shell prints before us is told apart from it. One
interpreter serves all phases of a command: what phase one made, phase two finds in memory. When the launch machine
hangs up before it sends `commit`, what was prepared and started here is rolled back.
"""

from __future__ import annotations

import _thread
import importlib
import json
import os
import select
import signal
import sys

from torchfab.remote import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from typing import Any

    from torchfab.remote.job.prepare import Preparation

MARK = b"\x1e"
OLDEST_PYTHON = (3, 9)
# How long we wait for the next request of a launch machine that does not hang up, where it does not say.
PATIENCE_S = 900
# How often a stream shows that it lives, where the launch machine does not say.
PULSE_S = 10.0


# Requests that leave nothing here once this interpreter has ended, by name: the module and the function that answers.
ANSWERS = {
    "clock": ("clock", "answer"),
    "checkup": ("host.probe", "look"),
    "reach": ("host.connectivity", "try_out"),
    "status": ("job.status", "answer_status"),
    "evidence": ("job.evidence", "answer"),
    "stacks": ("stacks.dump", "answer"),
    "slurm_status": ("slurm.job", "status"),
    "slurm_evidence": ("slurm.evidence", "answer"),
    "slurm_stop": ("slurm.job", "stop"),
    "slurm_forget": ("slurm.job", "forget"),
    "tree_look": ("host.file_tree", "look"),
    "tree_check": ("host.file_tree", "check"),
}
# The same, of functions that are also given the conversation, to send frames of their own until it is hung up.
STREAMS = {
    "logs": ("job.log_reader", "answer_logs"),
    "slurm_logs": ("slurm.logs", "answer_logs"),
    "load": ("job.load_stream", "stream"),
}


class CutOffError(Exception):
    """The launch machine has been silent for too long."""


def _cut_off(*_: object) -> None:
    raise CutOffError


class Conversation:
    """Answer requests until the launch machine hangs up.

    Parameters
    ----------
    bundle : str
        Source of the program that runs here, as it is to be written into a job's folder.
    """

    def __init__(self, bundle: str) -> None:
        self.bundle = bundle
        self.preparation: Preparation | None = None
        self.started: dict[str, Any] | None = None
        self.submitted: dict[str, Any] | None = None
        self.patience_s = PATIENCE_S
        self.sending = _thread.allocate_lock()
        self.mask: Callable[[Any], Any] | None = None
        # Nothing that we start or print by accident may get between the frames.
        self.out = os.dup(1)
        os.dup2(2, 1)
        signal.signal(signal.SIGALRM, _cut_off)

    def run(self) -> None:
        """Read requests from stdin and answer them."""
        try:
            while line := self._next_line():
                self._answer(json.loads(line))
        except CutOffError:
            pass
        finally:
            self._rollback()

    def _next_line(self) -> bytes:
        # A launch machine that dies, or whose link is cut, does not hang up: without an end to our patience, what is
        # not confirmed would run until the kernel gives the connection up, hours later.
        signal.alarm(self.patience_s)
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

    def _answer(self, request: dict[str, Any]) -> None:
        try:
            self.mask = _mask_of(request)
            answer = self._operation(request["op"])(request)
        except BrokenPipeError:
            raise
        except Exception as error:  # told to the user, with where it happened: it is our fault, or the machine's
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
        """Send one frame, in which no secret of the job can be read."""
        answer = self.mask(answer) if self.mask else answer
        data = json.dumps(answer).encode("utf-8", "surrogatepass")
        data = MARK + str(len(data)).encode() + b"\n" + data
        with self.sending:
            while data:
                data = data[os.write(self.out, data) :]

    def _stream(self, stream: Callable[[dict[str, Any], Conversation], dict[str, Any]], request: dict[str, Any]) -> Any:
        """Stream, and show now and then that we live: a link that is cut is silent too, and does not hang up."""
        import threading

        over = threading.Event()
        threading.Thread(target=self._beat, args=(over, request.get("pulse_s", PULSE_S)), daemon=True).start()
        try:
            return stream(request, self)
        finally:
            over.set()

    def _beat(self, over: threading.Event, pulse_s: float) -> None:
        try:
            while not over.wait(pulse_s):
                self.send({"pulse": True})
        except OSError:  # nobody listens: the stream finds out by itself
            pass

    def hung_up(self, within_s: float = 0.0) -> bool:
        """Say whether the launch machine has closed the connection, or does so within some seconds."""
        readable, _, _ = select.select([0], [], [], within_s)
        return bool(readable)  # nothing is sent to us while we stream: readable means the end

    # ---- requests that remember something; the others are in ANSWERS and STREAMS

    def on_prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Phase one."""
        from torchfab.remote.job.prepare import Preparation

        self.patience_s = request.get("patience_s", PATIENCE_S)
        self.preparation = Preparation(request)
        return self.preparation.run(self.bundle)

    def on_start(self, request: dict[str, Any]) -> dict[str, Any]:
        """Phase two."""
        from torchfab.remote.job.start import start

        assert self.preparation is not None
        self.started = {**self.preparation.request, **request}
        return start(self.preparation.folder, request)

    def on_commit(self, request: dict[str, Any]) -> dict[str, Any]:
        """All nodes are ready: what was prepared here may begin, and is to stay."""
        answer = self._release() if self.started is not None else {}
        if answer.get("problems"):
            return answer
        if self.preparation is not None:
            self.preparation.release_port()
        self.preparation = self.started = self.submitted = None
        self.patience_s = PATIENCE_S
        return answer

    def _release(self) -> dict[str, Any]:
        from torchfab.remote.job.start import release

        assert self.started is not None
        names = [process["name"] for process in self.started["processes"]]
        return release(files.folder_of(self.started), names, self.started["start_timeout_s"])

    def on_rollback(self, request: dict[str, Any]) -> dict[str, Any]:
        """Undo both phases here: the launch has failed elsewhere, or was interrupted."""
        answer = self.on_stop(request)
        if self.preparation is not None:
            self.preparation.discard()
        if not answer["left"]:
            self.on_forget(request)
        self.preparation = self.started = None
        return answer

    def on_stop(self, request: dict[str, Any]) -> dict[str, Any]:
        """Stop the job here."""
        from torchfab.remote.job import status, stop

        folder, job_id, rank = files.folder_of(request), request["job_id"], request["node_rank"]
        done = stop.stop(folder, job_id, rank, request["session"], request["grace_s"])
        return {**done, "status": status.status(folder, job_id, rank)}

    def on_forget(self, request: dict[str, Any]) -> dict[str, Any]:
        """Remove the folder of a job that has ended."""
        from torchfab.remote.job.prepare import remove_job_folder

        remove_job_folder(files.folder_of(request))
        return {}

    # ---- Slurm, where its commands are

    def on_slurm_submit(self, request: dict[str, Any]) -> dict[str, Any]:
        """Hand a job to sbatch; it is rolled back unless `commit` follows."""
        from torchfab.remote.slurm.submit import submit

        self.patience_s = request["patience_s"]
        answer = submit(request, self.bundle)
        if "slurm_id" in answer:
            self.submitted = {**request, **answer}
        return answer

    def on_slurm_stacks(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say what the ranks of a Slurm job are doing."""
        from torchfab.remote.slurm.stacks import answer

        return answer(request, self.bundle)


def _mask_of(request: dict[str, Any]) -> Callable[[Any], Any] | None:
    """Return what hides the secrets of the job that a request is about."""
    if not request.get("mask_key"):
        return None
    folder = request.get("folder") or (files.folder_of(request) if "job_id" in request else "")
    if not folder:
        return None
    from torchfab.remote.job import redaction

    return redaction.masker(folder, request["mask_key"])


def _function(module: str, name: str) -> Callable[..., dict[str, Any]]:
    # Imported where it is needed, so that a status pays for no launch.
    return getattr(importlib.import_module(f"torchfab.remote.{module}"), name)  # type: ignore[no-any-return]


def main(bundle: str) -> int:
    """Talk to the launch machine (no arguments), or supervise the process named by them; return the exit code."""
    if sys.argv[1:2] == ["supervise"]:
        from torchfab.remote.job.supervisor import main as supervise

        return supervise(sys.argv[2])
    if sys.argv[1:2] == ["slurm"]:
        from torchfab.remote.slurm.task import main as supervise_task

        return supervise_task(sys.argv[2:])
    if sys.argv[1:2] == ["slurm-code"]:
        from torchfab.remote.slurm.task import exit_code

        return exit_code(int(sys.argv[2]))
    if sys.argv[1:2] == ["slurm-stacks"]:
        from torchfab.remote.slurm.stacks import main as look

        return look()
    try:
        Conversation(bundle).run()
    except BrokenPipeError:
        return 1
    return 0
