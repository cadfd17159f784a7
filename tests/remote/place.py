"""A job's folder on a node with its program and specs, and supervisors as real processes without tmux."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from torchfab.core import environment
from torchfab.remote import job_files, procfs
from torchfab.remote.job import containment, process_search
from torchfab.transport import bundle

# Python starts in 10 ms without site-packages and the user's files.
PYTHON = (sys.executable, "-I", "-S")


def python(code: str, *words: str) -> tuple[str, ...]:
    """Return the argv that runs a few lines of Python."""
    return (*PYTHON, "-c", code, *words)


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Call `what` until it returns a true value, and return that; fail after the timeout."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError(f"waited {seconds:g} s in vain")


@dataclass
class Place:
    """The folder of a job on a node.

    Parameters
    ----------
    folder : Path
        Ends in `node-0`.
    job_id : str
        Unique on this machine, so that no other processes match.
    """

    folder: Path
    job_id: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        job_files.make_private(str(self.folder))
        job_files.write_text(str(self.folder / job_files.BUNDLE), bundle.source())

    @property
    def marks(self) -> dict[str, str]:
        """The variables that mark every process of the job."""
        return environment.job_markers(self.job_id, 0)

    def prepare(
        self, argv: Sequence[str], name: str = "agent", secrets: Mapping[str, str] | None = None, **spec: Any
    ) -> Path:
        """Write the spec of a process; return its folder."""
        base = {
            "name": name,
            "argv": list(argv),
            "env": {"PATH": os.environ["PATH"], **self.marks, **spec.pop("env", {})},
            "cwd": "/",
            "rank": None,
            "rank_logs": "",
            "folders": [],
            "grace_s": 10.0,
        }
        folder = self.folder / name
        job_files.make_private(str(folder))
        if secrets:
            job_files.write_json(str(folder / job_files.SECRETS), dict(secrets))
        job_files.write_json(str(folder / job_files.SPEC), {**base, **spec})
        return folder

    def supervise(
        self, *names: str, env: Mapping[str, str] | None = None, under: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start the supervisor of processes (default: of `agent`); `under` is a program that runs it."""
        program = [*under, *PYTHON, str(self.folder / job_files.BUNDLE), "supervise", *(names or ("agent",))]
        return self.begin(program, env={"PATH": os.environ["PATH"], **(env or {})})

    def begin(self, argv: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own."""
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.started.append(subprocess.Popen(argv, env=dict(env), start_new_session=True, **quiet))  # type: ignore[call-overload]
        return self.started[-1]

    def run(self, argv: Sequence[str], **spec: Any) -> tuple[int, dict[str, Any]]:
        """Supervise a process to its end; return the supervisor's exit code and the record of the end."""
        folder = self.prepare(argv, **spec)
        code = self.supervise(spec.get("name", "agent")).wait(60)
        return code, self.read(folder, job_files.EXIT)

    def read(self, folder: Path, name: str) -> Any:
        """Return the content of one of a process's JSON files; None while it is missing."""
        return job_files.read_json(str(folder / name))

    def running(self) -> list[int]:
        """Return the processes of the job that run."""
        return process_search.job_processes(self.job_id, 0)

    def end(self) -> None:
        """Kill whatever is left, by pid."""
        below = procfs.descendants([child.pid for child in self.started if child.poll() is None])
        for child in self.started:
            if child.poll() is None:
                child.kill()
            child.wait()
        _kill(below)
        while left := self.running():
            _kill(left)
            time.sleep(0.01)
        containment.remove_groups(str(self.folder))


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def without_groups() -> tuple[str, ...]:
    """Return the argv prefix that runs a program where it can make no control group: no hierarchy is mounted.

    An ordinary user usually can make none anyway.
    """
    if os.geteuid() != 0:
        return ()
    hide = 'mount -t tmpfs -o ro none /sys/fs/cgroup && exec "$@"'
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "hide")


def memory_group(name: str) -> Path:
    """Make a control group limited to 64 MB; skip the test where that is not allowed.

    Its name ends with our pid: two test runs on one machine have one each.
    """
    name = f"{name}-{os.getpid()}"
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, limit = (v1, "memory.limit_in_bytes") if v1.is_dir() else (v2, "memory.max")
    try:
        (root / name).mkdir(exist_ok=True)
        (root / name / limit).write_text(str(64 * 1024**2))
    except OSError as problem:
        pytest.skip(f"no control group with a memory limit can be made here: {problem}")
    return root / name


def removed(group: Path) -> bool:
    """Remove a control group; return whether that worked: it fails while a process in it is still ending."""
    try:
        group.rmdir()
    except OSError:
        return False
    return True
