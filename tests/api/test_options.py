"""Keyword arguments of `launch` are the flags of its launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from torchfab import fabfile
from torchfab.api import options
from torchfab.cli.flags import LaunchFlags
from torchfab.core.errors import UsageError
from torchfab.launchers import per_gpu, per_node
from torchfab.launching import launcher_table


def parse(**values: Any) -> tuple[Any, Any]:
    return options.parse_flags(per_node, LaunchFlags, values)


def refusal(**values: Any) -> str:
    with pytest.raises(UsageError) as caught:
        parse(**values)
    return str(caught.value)


@pytest.mark.parametrize("name", launcher_table.ALL)
def test_each_launcher_has_the_flags_of_its_task(name: str) -> None:
    launcher, shared = options.launcher_named(name)
    task = getattr(fabfile, f"launch_{name.replace('-', '_')}")
    names = {*vars(shared())} | {*vars(launcher.Flags())}
    assert names - {"hostfile"} == {argument.attr_name or argument.name for argument in task.get_arguments()} - {
        "hostfile"
    }


def test_values_are_those_of_the_command_line() -> None:
    shared, own = parse(name="gpt2", nproc_per_node=4, grace=2, workdir=Path("/project"), port=5001, max_restarts="3")
    assert shared == LaunchFlags(name="gpt2", grace=2.0, workdir="/project", port=5001)
    assert own == per_node.Flags(nproc_per_node="4", max_restarts=3)


def test_none_is_the_default() -> None:
    assert parse(name=None, grace=None, nproc_per_node=None) == (LaunchFlags(), per_node.Flags())


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"port": 70000}, "--port must be a number from 1 to 65535, or 0 for a free one; got '70000'"),
        ({"grace": "soon"}, "--grace must be a number of seconds, got 'soon'"),
        ({"name": ""}, "--name is empty\n  fix: give it a value, or omit it"),
        ({"name": ["a"]}, "--name is a text or a number, got ['a']"),
        ({"port": True}, "--port is a value, not a switch, got True"),
        ({"nproc": 4}, "launch() with launcher 'per-node' has no argument 'nproc'"),
        ({"max_restart": 4}, "did you mean max_restarts?"),
        ({"gpufile": "x"}, "has no argument 'gpufile'"),
        ({"follow": True}, "iterate over logs(follow=True), or call wait()"),
        ({"tmux": True}, "the supervisor of a program's job is always in tmux"),
        ({"dry_run": True}, "dry_run(…) takes the same arguments, and returns the text"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], text: str) -> None:
    assert text in refusal(**values)


def test_a_switch_is_true_or_false() -> None:
    launcher, shared = options.launcher_named("deepspeed")
    switch = next(name for name, value in vars(launcher.Flags()).items() if isinstance(value, bool))
    _, own = options.parse_flags(launcher, shared, {switch: True})
    assert getattr(own, switch) is True
    with pytest.raises(UsageError, match="is True or False, got 'yes'"):
        options.parse_flags(launcher, shared, {switch: "yes"})


def test_an_unknown_launcher_is_an_error_with_all_names() -> None:
    assert options.launcher_named("per-gpu")[0] is per_gpu
    with pytest.raises(UsageError, match="there is no launcher 'ray'\n  fix: one of per-node, per-gpu, deepspeed"):
        options.launcher_named("ray")


def test_hosts_are_those_of_the_flag() -> None:
    assert options.hosts_flag(None) == ""
    assert options.hosts_flag("node[1-2],a@b:22") == "node[1-2],a@b:22"
    assert options.hosts_flag(["a", "b"]) == "a,b"
    for wrong in ([], "", ["a", " "], [1]):
        with pytest.raises(UsageError, match="hosts names hosts"):
            options.hosts_flag(wrong)  # type: ignore[arg-type]


def test_variables_are_texts_or_numbers() -> None:
    assert options.env_flags({"A": "x y", "B": 3, "C": Path("/x")}) == ("A=x y", "B=3", "C=/x")
    for wrong in (None, True, ["x"]):
        with pytest.raises(UsageError, match="env: the value of A is a text"):
            options.env_flags({"A": wrong})
