"""launch-deepspeed on two hosts: a deepspeed on each, and one on the first that reaches the other through pdsh."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.integration import ways
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
"""
CONFIG = {
    "train_micro_batch_size_per_gpu": 64,
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
}


@pytest.fixture(params=["on every node", "from the head"])
def way(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Give the words of a launch each way."""
    if not ways.has_module("deepspeed"):
        absent("deepspeed is not installed")
    if request.param == "on every node":
        return ("launch-deepspeed",)
    require("pdsh")
    return ("launch-deepspeed", "--from-head")


def test_words_arrive_and_a_rank_that_fails_ends_the_job(fab: Fab, way: tuple[str, ...]) -> None:
    ways.check_that_words_arrive_and_a_failure_ends_it(fab, *way)


def test_stop_stops_one_job_and_a_killed_head_is_seen(fab: Fab, way: tuple[str, ...]) -> None:
    ways.check_that_stop_stops_one_job_and_a_killed_head_is_seen(fab, *way)


def test_the_dry_run_works_when_pasted(fab: Fab, way: tuple[str, ...]) -> None:
    ways.check_that_the_dry_run_works_when_pasted(fab, *way)


def test_it_trains_as_launch_per_node_does(fab: Fab, way: tuple[str, ...], cache: Path, reference: float) -> None:
    assert ways.loss_at_step_20(fab, cache, *way) == pytest.approx(reference, abs=1e-4)


def test_a_script_of_deepspeed_s_own_trains_with_zero_1(fab: Fab, way: tuple[str, ...]) -> None:
    fab.write("zero.py", ZERO)
    config = fab.write("ds_config.json", json.dumps(CONFIG))
    script = ("--", "zero.py", "--deepspeed", "--deepspeed_config", str(config))
    words = (*ways.hosts(fab, *way), "--name", "zero", "--local-rank", "--follow", *script)
    done = ok(fab(*words, timeout_s=120))
    for rank in (0, 1):
        losses = [float(loss) for loss in re.findall(rf"\[{rank}\] zero 1 step \d+ loss (\S+)", done.stdout)]
        assert len(losses) == 20, done
        assert losses[-1] < losses[0]
