"""Repeated launches, each ended at a random moment: nothing is left on any host."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed import Cluster
from tests.integration.fab import Done, Fab, eventually

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
