"""A launch: its hosts, the name of its job, and its state after an interrupt."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.factories import make_facts, make_job, make_node_facts, make_nodes
from torchfab.cli.flags import JobFlags, LaunchFlags
from torchfab.config import defaults
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostsFailedError, Interrupted
from torchfab.launchers import per_node
from torchfab.launching import launch
from torchfab.launching.context import CommandContext
from torchfab.records import Record
from torchfab.records.launch_request import LaunchRequest
from torchfab.runtimes import tmux

NODES = make_nodes("a", "b")


@pytest.fixture
def ctx(tmp_path: Path) -> CommandContext:
    config = {"records": "jobs"}
    return CommandContext(config, tmp_path, str(tmp_path), time.time(), "0a1b2c3d", {}, ConnectionSettings())


@pytest.fixture
def launch_request(monkeypatch: pytest.MonkeyPatch) -> LaunchRequest:
    """A launch request whose nodes are prepared and start everything."""
    facts = [make_node_facts(each) for each in make_facts(1, 1)]
    answers = {node.rank: tmux.PreparedNode(node, facts[node.rank], 0.0, 0.0) for node in NODES}
    prepared = tmux.Prepared(ConnectionSettings(), NODES, answers=answers)
    monkeypatch.setattr(tmux, "prepare", lambda *_: prepared)
    monkeypatch.setattr(tmux, "start", lambda *_: None)
    flags = per_node.Flags()
    return LaunchRequest(make_job(options=per_node.options(flags)), vars(flags), NODES, (), 2)


@pytest.mark.parametrize(
    ("script", "name"),
    [(["src/train.py", "--lr", "0.1"], "train"), (["-m", "my.train", "--lr", "0.1"], "my-train")],
)
def test_a_job_is_named_after_its_script_or_module(ctx: CommandContext, script: list[str], name: str) -> None:
    config = {**defaults.SETTINGS, "script": [], "forward": []}
    job = launch.make_job(per_node, LaunchFlags(), per_node.Flags(), replace(ctx, config=config, script=tuple(script)))
    assert re.fullmatch(rf"{name}-\d{{4}}-\d{{6}}", job.name)


@pytest.mark.parametrize(
    ("flags", "setting", "probed"),
    [
        (LaunchFlags(), True, True),
        (LaunchFlags(no_probe=True), True, False),
        (LaunchFlags(), False, False),
        (JobFlags(), True, False),  # a batch launcher
    ],
)
def test_ranks_have_a_probe_unless_a_flag_or_a_setting_says_no(
    ctx: CommandContext, flags: JobFlags, setting: bool, probed: bool
) -> None:
    config = {**defaults.SETTINGS, "forward": [], "probe": setting}
    context = replace(ctx, config=config, script=("train.py",))
    assert launch.make_job(per_node, flags, per_node.Flags(), context).probe is probed


def test_a_function_runs_by_the_version_of_python_that_has_pickled_it(
    ctx: CommandContext, launch_request: LaunchRequest
) -> None:
    prepared = tmux.prepare(*[None] * 6)  # type: ignore[arg-type]
    for rank, version in enumerate(("3.11.7", "3.10.2")):
        each = prepared.answers[rank]
        prepared.answers[rank] = replace(each, facts=msgspec.structs.replace(each.facts, python=version))
    request = replace(launch_request, job=replace(launch_request.job, python_version="3.11"))
    with pytest.raises(HostsFailedError, match="1 of 2 hosts cannot run a function") as caught:
        launch.execute(request, ctx)
    reason = "/venv/bin/python is Python 3.10.2, and Python 3.11 is needed there"
    assert {host: each.message for host, each in caught.value.reasons.items()} == {"b": reason}
    assert list(ctx.records.root.iterdir()) == []
    prepared.answers[1] = replace(each, facts=msgspec.structs.replace(each.facts, python="3.11.0"))
    assert launch.execute(request, ctx).name == "gpt2"


def press_ctrl_c(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_just_after_the_start_keeps_the_record(
    ctx: CommandContext, launch_request: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Record, "remember", press_ctrl_c)
    with pytest.raises(Interrupted, match=r"job gpt2 had started by then: it runs\n.*fab stop gpt2"):
        launch.execute(launch_request, ctx)
    assert ctx.records.get("gpt2").is_confirmed


def test_ctrl_c_while_connections_close_keeps_the_record(
    ctx: CommandContext, launch_request: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tmux.Prepared, "close", press_ctrl_c)
    with pytest.raises(Interrupted, match="it runs"):
        launch.execute(launch_request, ctx)
    assert ctx.records.get("gpt2").is_confirmed


def test_ctrl_c_before_the_start_leaves_no_record(
    ctx: CommandContext, launch_request: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tmux, "start", press_ctrl_c)
    with pytest.raises(Interrupted, match="nothing was left running"):
        launch.execute(launch_request, ctx)
    assert ctx.records.all() == []
