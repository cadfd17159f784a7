"""Both launches train across two hosts: as root in namespaces, as an ordinary user on loopback addresses."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

from tests.integration.fab import BIGRAM, Fab
from tests.integration.jobs import ok, status_of, two

SMALL = ("--max-steps", "4", "--batch-size", "2", "--seq-length", "32", "--log-freq", "1")


# Each launch and each kind of cluster once; test_jobs has all four pairs, without training.
@pytest.mark.parametrize(
    ("any_fab", "gpus"), [("netns", False), ("loopback", True)], indirect=["any_fab"], ids=["per-node", "per-gpu"]
)
def test_a_training_over_hosts_survives_a_killed_fab(any_fab: Fab, gpus: bool) -> None:
    fab = any_fab
    fab.take(*BIGRAM)
    # Once the real model, once the one with the fastest start: the launch is the same.
    training = ("bigram.py", "--lr", "0.05") if gpus else ("train_llm.py",)
    script = ("--", *training, *SMALL, "--experiment-name", "small run")
    words = ("--name", "train", "--env", "HF_HUB_OFFLINE=1", "--follow", *script)
    process = fab.start(*(two(fab, *words) if gpus else fab.launch("--nproc-per-node", "1", *words)))
    assert process.stdout is not None
    while not process.stdout.readline().startswith("next:"):
        assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    running = status_of(fab, "train")
    assert running["state"] in ("running", "succeeded")
    assert ok(fab("wait", "train", timeout_s=120))
    status = status_of(fab, "train")
    assert (status["state"], status["exit_code"]) == ("succeeded", 0)
    assert sorted(rank["rank"] for node in status["nodes"] for rank in node["ranks"]) == [0, 1]
    assert len(status["nodes"]) == 2
    log = ok(fab("logs", "train", "--follow")).stdout  # ends at once, as the job has ended
    assert {int(rank) for rank in re.findall(r"\] rank=(\d)", log)} == {0, 1}
    losses = [float(loss) for loss in re.findall(r" loss=(\d+\.\d+)", log)]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert fab.processes() == {}


def test_the_embedded_default_trains_on_this_machine_without_ssh(fab: Fab) -> None:
    fab.take("train_llm.py")
    words = ("-H", "localhost", "launch-per-node", "--name", "here", "--follow", "--", "train_llm.py", *SMALL)
    done = ok(fab(*words, "--max-steps", "30", "--log-freq", "10", timeout_s=120))
    losses = [float(loss) for loss in re.findall(r" loss=(\d+\.\d+)", done.stdout)]
    assert losses[-1] < losses[0] - 0.1, done
    assert "fab logs here" in done.stderr  # the next command
    listed = json.loads(ok(fab("jobs", "--json")).stdout)
    assert [(job["job"], job["state"], job["world_size"]) for job in listed] == [("here", "succeeded", 2)]
