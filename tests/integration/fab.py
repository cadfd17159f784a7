"""Run the real `fab` of this checkout as a user would, on the launch machine of a rehearsal cluster."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from testbed import Cluster
from testbed.processes import Process
from tests.integration import forkserver
from tests.integration.forkserver import Parent
from tests.json_documents import check_output

ROOT = forkserver.ROOT
FAB = Path(sys.executable).with_name("fab")
TMUX_SESSIONS = ("tmux", "-L", "torchfab", "list-sessions", "-F", "#{session_name}")
BIGRAM = ("train_llm.py", "tests/integration/bigram.py")  # files of a training with bigram.py
QUICK_TORCH = Path(__file__).with_name("quick_torch")
LIGHT_SCRIPT = "import sys, time\nprint('light', *sys.argv[1:], flush=True)\ntime.sleep(float(sys.argv[1]))\n"


@dataclass(frozen=True)
class Done:
    """A completed `fab`: arguments, exit code and output."""

    args: tuple[str, ...]
    rc: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"fab {self.args} ended with {self.rc}\n--- stdout\n{self.stdout}--- stderr\n{self.stderr}---"


class Fab:
    """Run `fab` with its own records, working directory and node_dir; the creator calls `close`.

    Parameters
    ----------
    cluster : Cluster
        Its hosts are used (`-S` and `--hostfile` or `--gpufile` name them), and `fab` runs as its user.
    name : str
        Name of the folder that holds everything; any text.

    Attributes
    ----------
    folder, records, workdir, node_dir : Path
        Accessible to all nodes, which share the file system in a rehearsal cluster. The workdir holds a script without
        torch: `light.py SECONDS`.
    """

    def __init__(self, cluster: Cluster, name: str = "here") -> None:
        self.cluster = cluster
        self.base = Path(tempfile.mkdtemp(prefix="fab-", dir=cluster.layout.launch.home))
        self.folder = self.base / name
        self.records, self.workdir = self.folder / "records", self.folder / "project"
        self.node_dir = self.workdir / ".torchfab"
        self.workdir.mkdir(parents=True)
        self.write("light.py", LIGHT_SCRIPT)
        self.own(self.base)
        self.sessions_before = self.sessions()

    def own(self, path: Path | str) -> None:
        """Change the owner of a file or folder to the user that runs `fab`."""
        account = self.cluster.layout.account
        if os.geteuid() == 0:
            for each in [Path(path), *Path(path).rglob("*")]:
                os.chown(each, account.uid, account.gid, follow_symlinks=False)

    def take(self, *names: str) -> None:
        """Copy files of the project into the workdir."""
        for name in names:
            self.own(shutil.copy(ROOT / name, self.workdir))

    def write(self, name: str, text: str) -> Path:
        """Write a file into the workdir."""
        path = self.workdir / name
        path.write_text(text)
        self.own(path)
        return path

    # ---- running

    def __call__(
        self,
        *args: str,
        cwd: Path | None = None,
        config: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> Done:
        """Run `fab ARGS...` to its end.

        Parameters
        ----------
        cwd : Path, optional
            Default: the workdir.
        config : Mapping, optional
            Settings of the section `torchfab` of fabric.yaml.
        env : Mapping, optional
            More environment variables.
        """
        process = self.start(*args, cwd=cwd, config=config, env=env)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        check_output(args, stdout)
        return Done(args, process.returncode, stdout, stderr)

    def start(
        self,
        *args: str,
        cwd: Path | None = None,
        config: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        """Start `fab ARGS...` in its own process group, as a terminal does; `under` is a program that runs it."""
        own = {"FABRIC_TORCHFAB_RECORDS": str(self.records), "PYTHONUTF8": "1"}
        if any(word.startswith("launch-") for word in args):  # PYTHONPATH is forwarded, before that of the nodes
            own["PYTHONPATH"] = str(QUICK_TORCH)
        folder, args = cwd or self.workdir, self.args(*args, config=config)
        env = {**os.environ, **own, **(env or {})}
        if not env.get("PYTHONPATH"):
            env.pop("PYTHONPATH", None)
        if not under:
            return fork_parent(self.cluster).fork((str(FAB), *args), folder, env)
        return subprocess.Popen(
            (*under, *self.cluster.on_launch_machine(str(FAB), *args)),
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            start_new_session=True,
        )

    def argv(self, *args: str, config: Mapping[str, object] | None = None) -> tuple[str, ...]:
        """Return the command that runs `fab` on the launch machine."""
        return self.cluster.on_launch_machine(str(FAB), *self.args(*args, config=config))

    def args(self, *args: str, config: Mapping[str, object] | None = None) -> tuple[str, ...]:
        """Return all arguments of `fab`; `-S` is the cluster's ssh config unless given."""
        core = ["-r", str(ROOT)]
        if "-S" not in args:
            core += ["-S", str(self.cluster.ssh_config)]
        if config:
            core += ["-f", str(self.write("settings.yaml", yaml.safe_dump({"torchfab": dict(config)})))]
        return (*core, *args)

    def launch(self, *args: str, gpus: bool = False) -> tuple[str, ...]:
        """Return the arguments of a launch on the cluster's hosts; the default script is light.py for a minute."""
        task = ("launch-per-gpu", "--gpufile", str(self.cluster.gpufile)) if gpus else None
        task = task or ("launch-per-node", "--hostfile", str(self.cluster.hostfile))
        return (*task, *args, *(() if "--" in args else ("--", "light.py", "60")))

    # ---- leftovers

    def jobs(self) -> list[str]:
        """Return the names in the records folder."""
        return sorted(path.name for path in self.records.iterdir()) if self.records.is_dir() else []

    def processes(self) -> dict[int, str]:
        """Return the processes of all jobs launched with this object: pid -> command line."""
        found = {}
        for path in Path("/proc").iterdir():
            if path.name.isdigit() and Process.of(int(path.name)) and self._is_ours(path):
                found[int(path.name)] = read(path / "cmdline").replace(b"\0", b" ").decode(errors="replace")
        return found

    def _is_ours(self, process: Path) -> bool:
        # A supervisor's program is in our folder; its children have the job's id and our folder in their environment.
        folder, environment, command = os.fsencode(self.base), read(process / "environ"), read(process / "cmdline")
        marked = b"TORCHFAB_JOB_ID=" in environment and folder in environment
        # A tmux server keeps the command line that first started it.
        return marked or (folder in command and b"supervise" in command and not command.startswith(b"tmux"))

    def sessions(self) -> set[str]:
        """Return the tmux sessions of all nodes, and of the launch machine."""
        prefixes = [self.cluster.node(index).command() for index in range(self.cluster.layout.size)]
        found: set[str] = set()
        for prefix in [*prefixes, self.cluster.on_launch_machine()]:
            done = subprocess.run([*prefix, *TMUX_SESSIONS], capture_output=True, text=True, check=False)
            found |= set(done.stdout.split()) if done.returncode == 0 else set()
        return found

    def folders(self) -> list[str]:
        """Return the job folders on the nodes."""
        # Not `Path.glob`, which fails if a folder is removed meanwhile.
        found = (Path(folder, name) for folder, names, _ in os.walk(self.base) for name in names)
        return sorted(str(path) for path in found if path.match("jobs/*/node-*"))

    def left(self) -> dict[str, object]:
        """Return what is left of any job, by kind; empty if nothing is."""
        found: dict[str, object] = {
            "processes": self.processes(),
            "tmux sessions": self.sessions() - self.sessions_before,
            "folders": self.folders(),
            "records": self.jobs(),
        }
        return {kind: left for kind, left in found.items() if left}

    def assert_nothing_left(self, within_s: float = 0.0) -> None:
        """Fail unless no process, tmux session, folder on a node or record of any job is left after `within_s`."""
        assert eventually(lambda: not self.left(), within_s), self.left()

    def close(self) -> None:
        """Stop all jobs, and remove the folder."""
        running = self.processes() or self.sessions() - self.sessions_before
        for record in self.records.glob("*/record.json"):
            if running or '"runtime": "tmux"' not in record.read_text():  # a scheduler may start it later
                self("stop", record.parent.name, "--grace", "0")
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        for path in self.base.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(self.base, ignore_errors=True)


_parents: dict[tuple[str, ...], Parent] = {}


def fork_parent(cluster: Cluster) -> Parent:
    """Return the process that forks the `fab`s of a cluster; one per set of mounts."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    key = (cluster.layout.token, *(line for line in mounts if f" {cluster.layout.run_dir}/" in line))
    if key not in _parents:
        _parents[key] = Parent(cluster.on_launch_machine(sys.executable, forkserver.__file__))
        atexit.register(_parents[key].close)
    return _parents[key]


def eventually(holds: Callable[[], bool], within_s: float) -> bool:
    """Wait for a condition.

    Parameters
    ----------
    holds : callable
        The condition. What it costs is spent at most every second time: a `fab` takes its CPU time from what it waits
        for.
    within_s : float
        Time limit in seconds.

    Returns
    -------
    bool
        Whether it came true.
    """
    deadline = time.monotonic() + within_s
    while True:
        begun = time.monotonic()
        if holds():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(min(1.0, max(0.05, time.monotonic() - begun)))


def read(path: Path) -> bytes:
    """Return the content of a file of /proc; empty if its process has ended."""
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""
