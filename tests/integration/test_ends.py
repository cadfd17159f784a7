"""Every end of a job lets its ranks save: a matrix of ends, launchers and kinds of ranks.

The suite gives each end once. With `--ends`, which `inv reliability` passes, every launcher gives every end, and ranks
save for as long as in a real job.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from testbed import Cluster
from tests import faulttable
from tests.integration import ends
from tests.integration.ends import KINDS, LOADS, PLAIN, RANKS_PER_NODE, RankEnd
from tests.integration.fab import Done, Fab, eventually, read
from tests.integration.jobs import gpufile, ok, status_of
from tests.integration.kube_fab import KubeFab
from tests.integration.slurm import Slurm, SlurmFab
from tests.integration.test_graceful_end import LAUNCHERS, is_installed
from tests.kube.api import API
from tests.kube.machines import Machines
from tests.support import absent

RANKS = 2 * RANKS_PER_NODE
FAILED = 7  # the exit code of the rank that fails
SLURM, PODS = "launch-slurm", "launch-kubernetes"
ALL_LAUNCHERS = (*LAUNCHERS, SLURM, PODS)
FULL_S, SUITE_S = 40.0, 2.0  # how long a rank saves
SETTINGS = {"failure_grace_s": 1, "backoff_s": 0.1}


@dataclass
class Stage:
    """Where a job is ended: a launcher, and a cluster that it can reach.

    Parameters
    ----------
    fab : Fab or KubeFab
        The real `fab`.
    words : tuple of str
        The arguments of a launch with four ranks on each of two hosts.
    save_s : float
        How long a rank saves, in seconds.
    slurm : Slurm, optional
        Its Slurm. Default: none.

    Attributes
    ----------
    out : Path
        Where the ranks note what becomes of them.
    grace_s : float
        The grace of the launch: enough to save.
    stall_s : float
        After how many seconds without a line supervision takes the job for hanging.
    """

    fab: Fab | KubeFab
    words: tuple[str, ...]
    save_s: float
    slurm: Slurm | None = None
    out: Path = field(init=False)

    def __post_init__(self) -> None:
        self.out, self.grace_s = self.fab.workdir / "ends", self.save_s + 20
        self.stall_s = 5.0 if self.save_s == SUITE_S else 60.0  # most launchers load torch before they log
        self.out.mkdir()
        self.out.chmod(0o777)
        (self.fab.workdir / "script.py").write_text(ends.SCRIPT)

    def launch(self, *more: str) -> tuple[str, ...]:
        """Return the arguments of a launch."""
        script = ("--", "script.py", str(self.out), str(self.save_s))
        return (*self.words, "--name", "x", "--grace", f"{self.grace_s:g}", *more, *script)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start `fab ARGS...`."""
        return self.fab.start(*args, config=SETTINGS) if isinstance(self.fab, Fab) else self.fab.start(*args)

    def run(self, *args: str) -> Done:
        """Run `fab ARGS...` to its end."""
        process = self.start(*args)
        try:
            stdout, stderr = process.communicate(timeout=self.grace_s + 200)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return Done(args, process.returncode, stdout, stderr)

    def begin(self, *more: str) -> Done:
        """Launch the job, and wait until all ranks are ready."""
        launched = ok(self.run(*self.launch(*more)))
        self.await_ready()
        return launched

    def await_ready(self) -> None:
        """Wait until all ranks are ready."""
        assert ends.await_ready(self.out, RANKS), self.run("logs", "x")

    def stop(self) -> str:
        """Stop the job with the grace of its launch; return the report about its ranks."""
        stopped = ok(self.run("stop", "x"))
        assert "job x: stopped" in stopped.stdout, stopped
        found = re.findall(r"^\d+ ranks? .*$", stopped.stdout, re.MULTILINE)
        if not found:  # Kubernetes does not say how ranks ended
            return "stopped"
        ended = re.fullmatch(rf"{RANKS} ranks ended by themselves \((\d+) s\)", " ".join(found))
        assert ended, stopped
        assert int(ended[1]) >= self.save_s, stopped
        return str(found[0])

    def wait(self, *codes: int) -> Done:
        """Wait for the end of the job, which has one of these exit codes."""
        waited = self.run("wait", "x")
        assert waited.rc in codes, waited
        return waited

    def left(self) -> list[str]:
        """Return the command lines of processes of the job that are left."""
        commands = [
            read(path).replace(b"\0", b" ").decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline")
        ]
        return [command for command in commands if str(self.out) in command]


# ---- the ends: each ends the job of a stage, and returns what fab said of it


def stop(stage: Stage) -> str:
    """Stop the job."""
    stage.begin()
    return stage.stop()


def interrupt(stage: Stage) -> str:
    """Press Ctrl-C on --follow, which leaves the job; then stop it, as that says."""
    process = stage.start(*stage.launch("--follow"))
    try:
        stage.await_ready()
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, "the job is still running" in stderr) == (130, True), stderr
    time.sleep(0.5)
    assert not [end for end in ends.read_ends(stage.out, RANKS) if end.signals]
    return stage.stop()


def fail_peer(stage: Stage) -> str:
    """Let a rank fail, and wait for the end of the others."""
    stage.begin()
    (stage.out / "fail").touch()
    stage.wait(FAILED)
    if stage.slurm:  # the tasks of its step end together; elsewhere a stop ends the ranks of other hosts
        assert eventually(lambda: len(list(stage.out.glob("*.done"))) == RANKS - 2, stage.grace_s), stage.run("logs")
    ok(stage.run("stop", "x"))
    return f"failed: exit code {FAILED}"


def restart(stage: Stage) -> str:
    """Let the ranks hang, so that supervision restarts the job."""
    process = stage.start(*stage.launch("--supervise", "--restarts", "1", "--stall", f"{stage.stall_s:g}"))
    try:
        stage.await_ready()
        (stage.out / "hang").touch()
        _, stderr = process.communicate(timeout=stage.grace_s + 200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, stderr
    assert len(list(stage.out.glob("*.again"))) == RANKS, stderr
    events = ok(stage.run("jobs", "x", "--events")).stdout
    assert "it hangs" in events, events
    (said,) = re.findall(r"job x (succeeded after 1 restart)", events)
    return str(said)


def notice(stage: Stage) -> str:
    """Let Slurm send its notice: in a full run before the time limit, otherwise at once."""
    assert stage.slurm
    is_full = stage.save_s >= FULL_S
    launched = stage.begin(*(("--time", "2", "--signal-grace", "60") if is_full else ()))
    if is_full:
        stage.wait(128 + signal.SIGTERM, 1)
        return f"failed: {_reason(stage)}"
    stage.slurm.run("scancel", "--signal=USR1", _slurm_id(launched))
    assert eventually(lambda: len(list(stage.out.glob("*.done"))) == RANKS - 2, 60)
    ok(stage.run("stop", "x"))
    return "stopped"


def cancel(stage: Stage) -> str:
    """Cancel the job with Slurm's own command, whose grace is Slurm's KillWait."""
    assert stage.slurm
    stage.slurm.run("scancel", _slurm_id(stage.begin()))
    stage.wait(128 + signal.SIGTERM)
    return f"stopped: {_reason(stage)}"


def delete(stage: Stage) -> str:
    """Delete the Job as `kubectl delete job` does; each pod has its grace."""
    assert isinstance(stage.fab, KubeFab)
    stage.begin()
    stage.fab.api.remove("jobs", "x")
    assert eventually(lambda: not stage.left(), stage.grace_s + 30)
    return str(re.findall(r"job x: (\w+)", stage.run("status", "x").stdout)[0])


def _slurm_id(launched: Done) -> str:
    return str(re.findall(r"submitted as Slurm job (\d+)", launched.stdout)[0])


def _reason(stage: Stage) -> str:
    assert isinstance(stage.fab, Fab)
    return str(status_of(stage.fab, "x")["reason"])


@dataclass(frozen=True)
class End:
    """How a job is ended.

    Parameters
    ----------
    what : str
        What happens, for the docs.
    bring_about : callable
        Ends the job of a stage.
    launchers : tuple of str
        The launchers whose jobs can end so.
    others : str
        Why other jobs cannot. Default: all can.
    in_suite : tuple of str
        The launchers that the suite gives it.
    number : int
        The signal that ranks get. Default: SIGTERM.
    """

    what: str
    bring_about: Callable[[Stage], str]
    launchers: tuple[str, ...]
    others: str = ""
    in_suite: tuple[str, ...] = ()
    number: int = signal.SIGTERM


ENDS: Mapping[str, End] = {
    "stop": End("`fab stop`", stop, ALL_LAUNCHERS, in_suite=("launch-deepspeed --from-head",)),
    "interrupt": End(
        "Ctrl-C on `--follow`, then `fab stop`", interrupt, ALL_LAUNCHERS, in_suite=("launch-mpi, MPICH",)
    ),
    "peer": End("another rank fails", fail_peer, ALL_LAUNCHERS, in_suite=(SLURM,)),
    "restart": End(
        "`--supervise` restarts it",
        restart,
        tuple(LAUNCHERS),
        "schedulers restart jobs by themselves: these are not supervised",
        in_suite=("launch-per-gpu",),
    ),
    "notice": End(
        "Slurm's notice before the time limit",
        notice,
        (SLURM,),
        "only Slurm sends it",
        in_suite=(SLURM,),
        number=signal.SIGUSR1,
    ),
    "cancel": End("`scancel`", cancel, (SLURM,), "only Slurm has it", in_suite=(SLURM,)),
    "delete": End("`kubectl delete job`", delete, (PODS,), "only Kubernetes has it", in_suite=(PODS,)),
}
# What a launcher cannot do: by end and launcher, the kinds of ranks that may not save, and why.
LIMITS: Mapping[tuple[str, str], tuple[tuple[int, ...], str]] = {
    ("cancel", SLURM): ((LOADS,), "Slurm signals loaders too"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give all cells with --ends, otherwise one of each end."""
    if "cell" in metafunc.fixturenames:
        everything = metafunc.config.getoption("--ends")
        cells = [
            (name, launcher)
            for name, end in ENDS.items()
            for launcher in (end.launchers if everything else end.in_suite)
        ]
        metafunc.parametrize("cell", cells, ids=["-".join(cell).replace(" ", "") for cell in cells])


@pytest.fixture
def save_s(request: pytest.FixtureRequest) -> float:
    """Return how long a rank saves."""
    return float(request.config.getoption("--save-s") or (FULL_S if request.config.getoption("--ends") else SUITE_S))


@pytest.fixture(scope="module")
def slurm(request: pytest.FixtureRequest, loopback_cluster: Cluster) -> Iterator[Slurm]:
    """A Slurm whose own grace is long enough to save."""
    made = Slurm(loopback_cluster, kill_wait_s=60 if request.config.getoption("--ends") else 20)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def stage(cell: tuple[str, str], save_s: float, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage for a cell's launcher."""
    launcher = cell[1]
    if problem := is_installed(launcher):
        absent(problem)
    opened = {SLURM: _slurm_stage, PODS: _pods_stage}.get(launcher, _ssh_stage)
    yield from opened(launcher, save_s, request)


def _ssh_stage(launcher: str, save_s: float, request: pytest.FixtureRequest) -> Iterator[Stage]:
    fab = Fab(request.getfixturevalue("netns_cluster"))
    nproc: tuple[str, ...] = ("--hostfile", str(fab.cluster.hostfile), "--nproc-per-node", str(RANKS_PER_NODE))
    if launcher == "launch-per-gpu":
        nproc = ("--gpufile", gpufile(fab, *[0] * RANKS_PER_NODE, *[1] * RANKS_PER_NODE))
    try:
        yield Stage(fab, (*LAUNCHERS[launcher], *nproc), save_s)
    finally:
        fab.close()


def _slurm_stage(_: str, save_s: float, request: pytest.FixtureRequest) -> Iterator[Stage]:
    slurm = request.getfixturevalue("slurm")
    fab = SlurmFab(slurm)
    words = (SLURM, "--nodes", "2", "--nproc-per-node", str(RANKS_PER_NODE))
    try:
        yield Stage(fab, words, save_s, slurm)
    finally:
        fab.close()


def _pods_stage(_: str, save_s: float, request: pytest.FixtureRequest) -> Iterator[Stage]:
    cluster: Cluster = request.getfixturevalue("netns_cluster")
    with API() as api, tempfile.TemporaryDirectory(dir=cluster.layout.run_dir) as name:
        machines = Machines(api, cluster, Path(name))
        try:
            fab = KubeFab(api, machines, Path(name))
            yield Stage(fab, fab.launch("--nproc-per-node", str(RANKS_PER_NODE)), save_s)
        finally:
            machines.close()


@pytest.mark.timeout(900)
def test_ranks_save_at_every_end(cell: tuple[str, str], stage: Stage, request: pytest.FixtureRequest) -> None:
    name, launcher = cell
    end = ENDS[name]
    said = end.bring_about(stage)
    assert eventually(lambda: not stage.left(), 10), stage.left()
    found = ends.read_ends(stage.out, RANKS)
    problems = ends.problems_of(found, end.number)
    limited, why = LIMITS.get(cell, ((), ""))
    unexpected = {rank: texts for rank, texts in problems.items() if rank % RANKS_PER_NODE not in limited}
    assert not unexpected, (said, found, stage.run("logs", "x", "--lines", "40"))
    row = [_describe(kind, found, problems) for kind in range(len(KINDS))]
    request.node.user_properties.append(("end", [end.what, launcher, *row, f"{said}; {why}" if why else said]))


def _describe(kind: int, found: list[RankEnd], problems: Mapping[int, list[str]]) -> str:
    """Return a cell of the table."""
    if kind == PLAIN:
        return "ended"
    ranks = [end for end in found if end.kind == kind]
    texts = sorted({text for end in ranks for text in problems.get(end.rank, ())})
    if texts:
        return "; ".join(texts)
    seconds = min(end.saved["seconds"] for end in ranks if end.saved)
    return f"saved ({seconds:.0f} s)"


def test_every_end_is_in_the_suite_once() -> None:
    assert {name for name, end in ENDS.items() if not end.in_suite} == set()
    assert faulttable.ENDS_HEAD[2 : 2 + len(KINDS)] == KINDS
