"""launch-deepspeed on two hosts: a deepspeed on each, and one on the first that reaches the other through pdsh."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.integration import launcher_contract, plays
from tests.integration.fab import Fab
from tests.integration.jobs import ok
from tests.support import absent, require

ZERO = """
import argparse, json, os
import deepspeed, torch
parser = deepspeed.add_config_arguments(argparse.ArgumentParser())
parser.add_argument("--local_rank", type=int)
args = parser.parse_args()
assert args.local_rank == int(os.environ["LOCAL_RANK"])
deepspeed.ops.__compatible_ops__.clear()  # on CPUs it would compile one, for a minute
deepspeed.init_distributed("gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
engine, _, _, _ = deepspeed.initialize(args=args, model=model, optimizer=optimizer)
torch.manual_seed(1 + engine.global_rank)
inputs = torch.randn(64, 16)
for step in range(20):
    outputs = engine(inputs.to(engine.device))
    loss = ((outputs - inputs.sum(1, keepdim=True)) ** 2).mean()
    engine.backward(loss)
    engine.step()
    print("zero", engine.zero_optimization_stage(), "step", step, "loss", float(loss), flush=True)
deepspeed.comm.destroy_process_group()  # otherwise threads of gloo may abort the interpreter as it ends
"""
CONFIG = {
    "train_micro_batch_size_per_gpu": 64,
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
}


@pytest.fixture
def on_every_node() -> tuple[str, ...]:
    """Return the arguments of a launch with a deepspeed on each node."""
    if not launcher_contract.has_module("deepspeed"):
        absent("deepspeed is not installed")
    return ("launch-deepspeed",)


@pytest.fixture
def from_head(on_every_node: tuple[str, ...]) -> tuple[str, ...]:
    """Return the arguments of a launch with one deepspeed that reaches all nodes."""
    require("pdsh")
    return (*on_every_node, "--from-head")


@pytest.fixture(params=["on_every_node", "from_head"])
def task(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Return the arguments of both kinds of launch."""
    words: tuple[str, ...] = request.getfixturevalue(request.param)
    return words


def test_arguments_arrive_and_a_failing_rank_ends_the_job(fab: Fab, task: tuple[str, ...]) -> None:
    launcher_contract.check_arguments_and_failure(fab, *task)


def test_stop_ends_one_job_and_a_killed_head_is_reported(fab: Fab, task: tuple[str, ...]) -> None:
    launcher_contract.check_stop_and_killed_head(fab, *task)


def test_all_commands_name_the_same_first_rank(fab: Fab, task: tuple[str, ...]) -> None:
    plays.check_one(fab, "hangs" if "--from-head" in task else "launcher-kills", *task)


def test_the_dry_run_works_when_pasted(fab: Fab, task: tuple[str, ...]) -> None:
    launcher_contract.check_pasted_dry_run(fab, *task)


def test_it_trains_as_launch_per_node_does(fab: Fab, task: tuple[str, ...], cache: Path, reference: float) -> None:
    assert launcher_contract.loss_at_step_20(fab, cache, *task) == pytest.approx(reference, abs=1e-4)


def test_a_deepspeed_script_trains_with_zero_1(fab: Fab, on_every_node: tuple[str, ...]) -> None:
    fab.write("zero.py", ZERO)
    config = fab.write("ds_config.json", json.dumps(CONFIG))
    script = ("--", "zero.py", "--deepspeed", "--deepspeed_config", str(config))
    words = (*launcher_contract.hosts(fab, *on_every_node), "--name", "zero", "--local-rank", "--follow", *script)
    done = ok(fab(*words, timeout_s=240))
    for rank in (0, 1):
        losses = [float(loss) for loss in re.findall(rf"\[{rank}\] zero 1 step \d+ loss (\S+)", done.stdout)]
        assert len(losses) == 20, done
        assert losses[-1] < losses[0]


def test_a_node_without_deepspeed_is_an_error_with_the_install_command(fab: Fab) -> None:
    python = str(Path(sys.base_prefix) / "bin" / "python3")
    done = fab(
        *launcher_contract.hosts(fab, "launch-deepspeed"), "--name", "bare", "--python", python, "--", "light.py", "1"
    )
    assert done.rc != 0
    assert f"{python} has no module deepspeed" in done.stderr, done
    assert f"install it there: {python} -m pip install deepspeed" in done.stderr, done
    assert "nothing was started" in done.stderr, done
    fab.assert_nothing_left()
