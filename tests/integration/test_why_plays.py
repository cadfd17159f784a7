"""Who failed first, in plays of four ranks on two hosts: status, wait, why and supervise name the same one.

The suite gives every play on launch-per-gpu, and one on each other launcher (in the tests of that launcher). With
`--plays`, which `inv plays` passes, every launcher gives every play.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed import Cluster
from tests.integration import launcher_contract, plays
from tests.integration.fab import Fab
from tests.integration.jobs import gpufile, ok
from tests.integration.kube_fab import KubeFab
from tests.integration.launcher_contract import shown
from tests.integration.plays import PLAYS, Stage
from tests.integration.slurm import Slurm, SlurmFab
from tests.integration.test_graceful_end import LAUNCHERS, is_installed
from tests.kube.api import API
from tests.kube.machines import Machines
from tests.support import absent

IN_THE_SUITE = ("launch-per-gpu",)
SUPERVISED = ("hangs", "early", "import")  # in the suite, where each command counts
ALL_LAUNCHERS = (*LAUNCHERS, "launch-slurm", "launch-kubernetes")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the plays on all launchers with --plays, otherwise on one."""
    if "launcher" in metafunc.fixturenames:
        everything = metafunc.config.getoption("--plays")
        launchers = ALL_LAUNCHERS if everything else IN_THE_SUITE
        metafunc.parametrize("launcher", launchers, scope="module", indirect=True)
    if "play" in metafunc.fixturenames:
        metafunc.parametrize("play", PLAYS)


@pytest.fixture(scope="module")
def launcher(request: pytest.FixtureRequest) -> str:
    """Return each launcher that is installed here."""
    name = str(request.param)
    if problem := is_installed(name):
        absent(problem)
    return name


@pytest.fixture(scope="module")
def begun(launcher: str, request: pytest.FixtureRequest) -> Iterator[tuple[Stage, dict[str, str]]]:
    """Launch all plays that are selected on a launcher, one after the other without waiting; return their jobs."""
    selected = dict.fromkeys(
        str(item.callspec.params["play"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and "play" in item.fixturenames
    )
    opened = {"launch-slurm": _slurm_stage, "launch-kubernetes": _pods_stage}.get(launcher, _ssh_stage)
    stages = opened(launcher, request.getfixturevalue)
    stage = next(stages)
    try:
        yield stage, {play: stage.begin(play) for play in selected}
    finally:
        next(stages, None)


def _ssh_stage(launcher: str, fixture: Callable[[str], Cluster]) -> Iterator[Stage]:
    fab = Fab(fixture("netns_cluster"))
    words: tuple[str, ...] = LAUNCHERS[launcher]
    if launcher == "launch-per-gpu":
        words = (*words, "--gpufile", gpufile(fab, 0, 0, 1, 1))
    else:
        words = (*words, "--hostfile", str(fab.cluster.hostfile), "--nproc-per-node", "2")
    try:
        yield Stage(functools.partial(fab, config=plays.SETTINGS), words, launcher_contract.out_dir(fab, "plays"))
    finally:
        fab.close()


def _slurm_stage(_: str, fixture: Callable[[str], Cluster]) -> Iterator[Stage]:
    slurm = Slurm(fixture("loopback_cluster"))
    try:
        slurm.start()
        fab = SlurmFab(slurm)
        try:
            yield plays.slurm_stage(fab)
        finally:
            fab.close()
    finally:
        slurm.close()


def _pods_stage(_: str, fixture: Callable[[str], Cluster]) -> Iterator[Stage]:
    cluster = fixture("netns_cluster")
    with API() as api, tempfile.TemporaryDirectory(dir=cluster.layout.run_dir) as name:
        machines = Machines(api, cluster, Path(name))
        try:
            yield plays.pods_stage(KubeFab(api, machines, Path(name)))
        finally:
            machines.close()


def test_all_commands_name_the_same_first_rank(
    begun: tuple[Stage, dict[str, str]], launcher: str, play: str, request: pytest.FixtureRequest
) -> None:
    stage, jobs = begun
    supervise = bool(request.config.getoption("--plays")) or play in SUPERVISED
    first = plays.check(stage, play, jobs[play], supervise)
    named = f"rank {first}" if first in PLAYS[play].first else f"rank {first}, possibly: a pod is gone"
    request.node.user_properties.append(("play", [PLAYS[play].what, launcher, named]))


def test_rank_that_ends_at_once_has_its_code_and_its_log(fab: Fab) -> None:
    fab.write(
        "at_once.py", "import os\nprint('begin', flush=True)\nraise ValueError('no file of ' + os.environ['RANK'])\n"
    )
    hosts = str(fab.cluster.hostfile)
    ok(fab("launch-per-node", "--hostfile", hosts, "--nproc-per-node", "2", "--name", "x", "--", "at_once.py"))
    fab("wait", "x", config={"failure_grace_s": 6}, timeout_s=120)
    why, status = shown(fab, "why", "x"), shown(fab, "status", "x")
    first = why["first"]["rank"]
    assert why["cause"]["words"] == f"the script raised ValueError: no file of {first}"
    assert status["first_failure"]["rank"] == first
    assert {rank["code"] for node in status["nodes"] for rank in node["ranks"] if rank["rank"] == first} == {1}
    assert "begin" in fab("logs", "x", "--rank", str(first)).stdout


def test_launch_per_node_names_the_same_first_rank(fab: Fab) -> None:
    plays.check_one(fab, "hangs", "launch-per-node")
