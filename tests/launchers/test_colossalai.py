"""launch-colossalai: whole plans as values."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.factories import JOB_ID, folder, make_facts, make_job, make_nodes
from tests.hostile import HOSTILE
from tests.launchers.test_mpi import without_shims
from torchfab.core import dry_run
from torchfab.core.errors import UsageError
from torchfab.core.flag_values import parse
from torchfab.core.specs import Job, Process
from torchfab.launchers import colossalai, per_node, shims, torchrun_agent

PYTHON = "/venv/bin/python"


def job_with(values: Mapping[str, Any] | None = None, **flags: str) -> Job:
    return make_job(launcher="colossalai", options=colossalai.options(parse(colossalai.Flags, flags)), **(values or {}))


def head_of(job: Job) -> tuple[str, ...]:
    return colossalai.plan(job, make_nodes("node1", "node2"), (), make_facts(8, 8)).nodes[0].processes[1].argv


def test_the_plan_of_two_nodes() -> None:
    job, nodes, here = job_with(), make_nodes("node1", "node2"), f"{folder(0)}/head"
    plan = colossalai.plan(job, nodes, (), make_facts(8, 8))

    def relay(rank: int) -> Process:
        there = f"{folder(rank)}/agent"
        return Process(
            "agent",
            (PYTHON, "-I", "-S", f"{there}/relay.py", "await"),
            {
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "node1",
                "MASTER_PORT": "29400",
                "LOCAL_WORLD_SIZE": "8",
                "TORCHFAB_JOB_ID": JOB_ID,
                "TORCHFAB_NODE_RANK": str(rank),
                "TORCHELASTIC_ERROR_FILE": f"{there}/errors/error.json",
                "TORCHFAB_FOLDER": there,
            },
            rank_logs=per_node.RANK_LOGS,
            folders=("logs", "errors"),
            files={
                "relay.py": shims.source_of("relay"),
                "rank.py": shims.source_of("rank"),
                "torchrun_agent.py": torchrun_agent.CODE,
                "bin/torchrun": f'#!/bin/sh\nexec {PYTHON} {there}/torchrun_agent.py "$@"\n',
            },
            path=(f"{there}/bin",),
        )

    first, second = plan.nodes
    head = first.processes[1]
    assert (first.processes[0], second.processes) == (relay(0), (relay(1),))
    assert head.argv == (
        *(PYTHON, "-I", "-S", f"{here}/head.py"),
        *(PYTHON, f"{here}/colossalai_run.py", "run", "--hostfile", f"{here}/hostfile", "--nproc_per_node", "8"),
        *("--master_addr", "node1", "--master_port", "29400"),
        *("--extra_launch_args", 'redirects=3,log_dir="$TORCHFAB_FOLDER/logs"'),
        *("--", "train.py", "--lr", "3e-4"),
    )
    assert (head.secrets, head.env) == (
        False,
        {"PYTHONUNBUFFERED": "1", "TORCHFAB_JOB_ID": JOB_ID, "TORCHFAB_NODE_RANK": "0"},
    )
    assert (head.files["hostfile"], head.files["colossalai_run.py"]) == (
        "node1\nnode2\n",
        shims.source_of("colossalai_run"),
    )
    assert json.loads(head.files["nodes.json"])["fail_fast"] is True
    assert (plan.has_head, plan.world_size, plan.min_nodes) == (True, 16, 2)


def test_the_joined_command_is_parsed_by_a_shell_as_it_was_typed() -> None:
    script = ("my script's.py", *HOSTILE.values())
    argv = head_of(job_with({"script": script}))
    there = argv[argv.index("--") + 1 :]
    assert there[0].endswith(".py")
    assert tuple(shlex.split(" ".join(there))) == script


def test_a_module_is_passed_as_a_module() -> None:
    assert head_of(job_with({"script": ("-m", "pkg.train", "a b")}))[-4:] == ("-m", "pkg.train", "--", "'a b'")


def test_a_script_that_colossalai_does_not_accept_is_an_error() -> None:
    # It says so itself, and ends with 0.
    with pytest.raises(UsageError, match=r"colossalai runs scripts whose names end in \.py"):
        head_of(job_with({"script": ("train", "x")}))


def test_different_numbers_of_ranks_are_an_error() -> None:
    with pytest.raises(UsageError, match="the same number of ranks on every node, not uneven: 1 node with 4"):
        colossalai.plan(job_with(), make_nodes("a", "b"), (), make_facts(8, 4))


def test_only_node_0_requires_colossalai() -> None:
    requirements = colossalai.requirements(job_with())
    assert (requirements.modules, requirements.head_modules[0]) == (("torch",), "colossalai")
    assert requirements.installs["colossalai"].startswith("--no-deps colossalai==0.5.0")


def test_the_dry_run_of_two_nodes_matches_the_golden_file(golden: Callable[[str, str], None]) -> None:
    values = {"port": 5001, "env": {"NCCL_DEBUG": "INFO"}, "script": ("train.py", "--name", "it's $5")}
    job = job_with(values, nproc_per_node="2")
    nodes = make_nodes("node1", "node2")
    facts = colossalai.facts_from_flags(job, nodes)
    assert facts is not None
    plan = colossalai.plan(job, nodes, (), facts)
    text = dry_run.render_dry_run(plan, lambda each: ("ssh", "--", each.node.host, "bash", "-s"), ["a note"])
    golden("dry-run-colossalai.sh", without_shims(text))
