"""Commands that are ended at random moments: nothing is left on any host that the next command does not clear."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from testbed import Cluster
from tests.integration.fab import Done, Fab, eventually, read
from tests.integration.jobs import ok, two
from tests.integration.test_sync import mounted
from tests.support import require

FIRST_SEED = 20_000


def temporary_files(cluster: Cluster) -> set[str]:
    """Return all files in /tmp and in the homes of all hosts."""
    tops = {str(path) for path in Path("/tmp").glob("*") if "torchfab" in path.name or path.name.startswith("tmux-")}
    homes = [node.directory for node in cluster.layout.machines]
    inside = {str(path) for home in homes for sub in ("home", "tmux") for path in (home / sub).rglob("*")}
    return tops | inside


def settled(fab: Fab, files: set[str]) -> dict[str, object]:
    """Return new leftovers, except records and logs, which stay."""
    left = {kind: what for kind, what in fab.left().items() if kind in ("processes", "tmux sessions")}
    ours = {path for path in temporary_files(fab.cluster) - files if not Path(path).is_relative_to(fab.base)}
    left |= {"files": sorted(ours)} if ours else {}
    # A later claim removes the claim of a killed launch.
    claims = {path.parent for path in fab.records.glob("*/launching") if not (path.parent / "record.json").exists()}
    files_of_jobs = [path for path in fab.base.rglob("*") if path.parent not in claims]
    folders = [path for path in files_of_jobs if path.is_socket() or path.name.endswith((".new", ".part"))]
    return left | ({"unfinished": [str(path) for path in folders]} if folders else {})


def stop_by_name(fab: Fab, launch: subprocess.Popen[str], job: str) -> Done | None:
    """Run `fab stop`."""
    return fab("stop", job, "--grace", "1")


def signal_all(number: signal.Signals) -> Callable[[Fab, subprocess.Popen[str], str], Done | None]:
    """Return a function that sends a signal to the launch, as a terminal or the kernel does."""

    def send(fab: Fab, launch: subprocess.Popen[str], job: str) -> Done | None:
        if launch.poll() is None:
            os.killpg(launch.pid, number)
        return None

    send.__name__ = number.name
    return send


WAYS = (stop_by_name, signal_all(signal.SIGINT), signal_all(signal.SIGKILL), signal_all(signal.SIGTERM))


@pytest.mark.timeout(7200)
def test_launches_and_stops_at_random_moments_leave_nothing(fab: Fab, request: pytest.FixtureRequest) -> None:
    rounds = request.config.getoption("--rounds")
    files = temporary_files(fab.cluster)
    for seed in range(FIRST_SEED, FIRST_SEED + rounds):
        chance = random.Random(seed)
        way, after_s = chance.choice(WAYS), chance.uniform(0.2, 3.0)
        job = f"stress-{seed}"
        launch = fab.start(*fab.launch("--name", job, "--grace", "1", "--", "light.py", "30", gpus=True))
        time.sleep(after_s)
        stopped = way(fab, launch, job)
        stdout, stderr = launch.communicate(timeout=60)
        story = (seed, way.__name__, after_s, stopped, Done((), launch.returncode, stdout, stderr))
        # Fabric handles Ctrl-C before our code runs.
        assert "Traceback" not in stderr or "from fabric.main import program" in stderr, story
        # In any state: nodes roll back an unconfirmed launch, and the rest is stopped by name.
        if (fab.records / job / "record.json").exists():
            assert fab("stop", job, "--grace", "1").rc == 0, story
        assert eventually(lambda: not settled(fab, files), 60), (settled(fab, files), story)
    ways = "`fab launch-per-gpu`: `fab stop`, Ctrl-C, SIGTERM, SIGKILL"
    request.node.user_properties.append(("stress", [ways, str(rounds), "nothing was left after `fab stop`"]))


# ---- SIGKILL


@dataclass
class Kills:
    """Runs commands, and kills each at a random moment.

    Parameters
    ----------
    fab : Fab
        The real `fab`.
    seed : int
        The first seed; each command has the next one.

    Attributes
    ----------
    took_s : float
        How long a command of this kind takes at most, as far as is known.
    finished : int
        How many had ended before they were to be killed.
    counts : dict of str to int
        What the next commands found, and how often.
    """

    fab: Fab
    seed: int
    took_s: float = 0.0
    finished: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """Temporary files have a folder of their own."""
        return {"TMPDIR": str(self.fab.workdir / "tmp")}

    def measure(self, *args: str, cwd: Path | None = None) -> None:
        """Run a command to its end, and note how long that takes."""
        begun = time.monotonic()
        process = self.fab.start(*args, env=self.env, cwd=cwd)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, (stdout, stderr)
        self.took_s = max(self.took_s, time.monotonic() - begun)

    def kill(self, *args: str, cwd: Path | None = None, is_alone: bool | None = None) -> str:
        """Start a command and kill it, alone or with its child processes; return a description for error messages."""
        self.seed += 1
        chance = random.Random(self.seed)
        after_s = chance.uniform(0, 1.1 * self.took_s)
        is_alone = chance.random() < 0.5 if is_alone is None else is_alone
        process = self.fab.start(*args, env=self.env, cwd=cwd)
        time.sleep(after_s)
        try:
            (os.kill if is_alone else os.killpg)(process.pid, signal.SIGKILL)
            self.took_s = max(self.took_s, after_s)
        except ProcessLookupError:
            self.finished += 1
            self.took_s = after_s
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGKILL, 0), (self.seed, after_s, is_alone, stdout, stderr)
        return f"seed {self.seed}: {args[:1]} killed after {after_s:.3f} s, alone {is_alone}: {stdout}{stderr}"

    def found(self, what: str) -> None:
        """Count the findings of the next command."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def assert_clear(self, files: set[str], story: str) -> None:
        """Fail unless no process, session, socket, unfinished or temporary file is left."""
        assert eventually(lambda: not settled(self.fab, files), 60), (settled(self.fab, files), story)
        temporary = list((self.fab.workdir / "tmp").iterdir())
        assert not temporary, (temporary, story)


@pytest.fixture
def kills(fab: Fab, request: pytest.FixtureRequest) -> Iterator[Kills]:
    """The object that kills commands; its counts are in the report."""
    made = Kills(fab, FIRST_SEED)
    (fab.workdir / "tmp").mkdir()
    fab.own(fab.workdir / "tmp")
    yield made
    name, _, how = str(request.node.name).removeprefix("test_a_killed_").partition("[")
    command = f"`fab {name.partition('_')[0]}`, SIGKILL" + (f" to it {how[:-1]}" if how else "")
    total = made.seed - FIRST_SEED
    found = "; ".join(f"{count} {what}" for what, count in sorted(made.counts.items()))
    killed = f"{total - made.finished}" + (f" ({made.finished} had ended before)" if made.finished else "")
    request.node.user_properties.append(("stress", [command, killed, found]))


@pytest.fixture
def times(request: pytest.FixtureRequest) -> int:
    """Return how many commands are killed, of all kinds together."""
    return int(request.config.getoption("--kills"))


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("is_alone", [True, False], ids=["alone", "with its children"])
def test_a_killed_launch_is_named_or_leaves_nothing(kills: Kills, times: int, is_alone: bool) -> None:
    fab, files = kills.fab, temporary_files(kills.fab.cluster)
    words = two(fab, "--grace", "1", "--name")
    kills.measure(*words, "whole", "--", "light.py", "60")
    ok(fab("stop", "whole"))
    for number in range(times // 4):
        job = f"launch-{number}"
        story = kills.kill(*words, job, "--", "light.py", "60", is_alone=is_alone)
        if (fab.records / job / "record.json").exists():
            assert job in fab("jobs").stdout, story
            ok(fab("stop", job))
            kills.found("jobs named by `fab jobs` and ended by `fab stop`")
        else:
            kills.found("without a job: nothing was left, or the nodes rolled it back")
        kills.assert_clear(files, story)


@pytest.mark.timeout(7200)
def test_a_killed_stop_is_completed_by_the_next(kills: Kills, times: int) -> None:
    fab, files = kills.fab, temporary_files(kills.fab.cluster)
    words = two(fab, "--grace", "1", "--name")
    ok(fab(*words, "whole", "--", "light.py", "60"))
    kills.measure("stop", "whole")
    for number in range(times // 4):
        job = f"stop-{number}"
        ok(fab(*words, job, "--", "light.py", "60"))
        story = kills.kill("stop", job)
        was_running = bool(fab.processes())
        stopped = ok(fab("stop", job))
        assert f"job {job}: stopped, no process of it is left on 2 nodes" in stopped.stdout, (stopped, story)
        kills.found("jobs ended by the next `fab stop`" if was_running else "jobs whose processes had ended")
        kills.assert_clear(files, story)


@pytest.fixture
def code(fab: Fab) -> Iterator[Path]:
    """A folder of files that is on a disk of its own on every node."""
    require("rsync")
    path = fab.base / "code"
    path.mkdir()
    for number in range(40):
        (path / f"{number}.py").write_text(f"print({number})\n" * 100)
    fab.own(path)
    with contextlib.ExitStack() as stack:
        for index in range(2):
            stack.enter_context(mounted(fab, index, "-t", "tmpfs", "tmpfs", over=path))
        yield path


@pytest.mark.timeout(7200)
def test_a_killed_sync_is_completed_by_the_next(kills: Kills, times: int, code: Path) -> None:
    fab, files = kills.fab, temporary_files(kills.fab.cluster)
    words = ("sync", "--delete", "--hostfile", str(fab.cluster.hostfile))
    kills.measure(*words, cwd=code)
    for number in range(times // 4):
        (code / "large.bin").write_bytes(random.Random(number).randbytes(5_000_000))
        story = kills.kill(*words, cwd=code)
        done = ok(fab(*words, cwd=code))
        assert "2 nodes hold the same 41 files" in done.stdout, (done, story)
        kills.found("folders made the same by the next `fab sync`")
        assert eventually(lambda: not copying(code), 30), (copying(code), story)
        names = {path.name for path in code.iterdir()}
        there = [Path(f"/proc/{fab.cluster.node(index).sshd_pid}/root{code}") for index in range(2)]
        assert [names] * 2 == [{path.name for path in each.iterdir()} for each in there], story
        assert names == {"large.bin", *(f"{each}.py" for each in range(40))}, story
        kills.assert_clear(files, story)


def copying(folder: Path) -> list[str]:
    """Return the command lines of processes that copy into a folder."""
    commands = [
        read(path).replace(b"\0", b" ").decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline")
    ]
    return [command for command in commands if str(folder) in command]
