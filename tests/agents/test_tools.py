"""The tools: the command line of a call, wrong calls, and what is left out of a long result."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoke import Collection
from invoke.parser import Parser
from jsonschema import Draft202012Validator

from torchfab import fabfile
from torchfab.agents import tools
from torchfab.agents.tools import TOOLS, Tool
from torchfab.core.errors import UsageError

NAMES = [each.name for each in TOOLS]


def tool(name: str) -> Tool:
    return tools.find(name, tools.ACTIONS)


def words(name: str, /, **arguments: Any) -> list[str]:
    core, task = tools.command_line(tool(name), arguments)
    return [*core, *task]


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("status", {}, "status --json"),
        ("status", {"job": "gpt2"}, "status --json --job=gpt2"),
        ("logs", {"rank": 3}, "logs --rank=3 --lines=200"),
        ("logs", {"lines": 5, "grep": "loss", "job": None}, "logs --lines=5 --grep=loss"),
        ("stacks", {"ranks": True}, "stacks --json"),
        ("profile", {"seconds": 2.5}, "profile --json --seconds=2.5"),
        ("doctor", {"hosts": "a,b"}, "--hosts=a,b doctor --json"),
        ("top", {"job": "x"}, "top --once --json --job=x"),
        ("stop", {"job": "x", "grace": 0}, "stop --job=x --grace=0"),
        (
            "launch",
            {"command": ["t.py", "--lr", "1"], "launcher": "per-gpu", "env": {"A": "1"}, "dry_run": True, "name": "x"},
            "launch-per-gpu --env=A=1 --dry-run --name=x -- t.py --lr 1",
        ),
        ("launch", {"command": ["t.py"], "dry_run": False, "env": {}}, "launch-per-node -- t.py"),
    ],
)
def test_a_call_is_a_command_line(name: str, arguments: dict[str, Any], expected: str) -> None:
    assert words(name, **arguments) == expected.split()


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_a_flag_of_the_task_and_every_schema_is_valid(name: str) -> None:
    found = tool(name)
    Draft202012Validator.check_schema(found.input_schema)
    task = "launch-per-node" if name == tools.LAUNCH else found.command[0]
    known = Collection.from_module(fabfile)[task].get_arguments()
    flags = {each.name.replace("-", "_") for each in known}
    own = {"hosts", "command", "launcher", *(path.rpartition(".")[2] for path in found.left_out)}
    assert {each.name for each in found.parameters} - own <= flags
    contexts = Collection.from_module(fabfile).to_contexts()
    assert Parser(contexts=contexts).parse_argv(list(found.command))[0].name == task if name != tools.LAUNCH else True


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("logs", {"line": 3}, "logs has no argument 'line'"),
        ("jobs", {"job": "x"}, "jobs has no argument 'job'"),
        ("logs", {"lines": 0}, "lines is from 1 to 5000, got 0"),
        ("logs", {"lines": "all"}, 'lines is of type integer, got "all"'),
        ("logs", {"lines": True}, "lines is of type integer, got true"),
        ("logs", {"grep": "a\0b"}, "grep must not hold a NUL character"),
        ("logs", {"rank": [1]}, r"rank is of type string or integer, got \[1\]"),
        ("status", {"job": "--watch"}, "job has letters, digits, - and _ only"),
        ("status", {"job": 7}, "job is of type string, got 7"),
        ("stop", {}, "stop needs the argument job"),
        ("stop", {"job": "x", "grace": -1}, "grace is from 0 to 3600, got -1"),
        ("launch", {}, "launch needs the argument command"),
        ("launch", {"command": "t.py"}, "command is of type array"),
        ("launch", {"command": []}, "command holds texts, at least one"),
        ("launch", {"command": ["t.py", 1]}, "command holds texts, at least one"),
        ("launch", {"command": ["t.py"], "env": {"A": 1}}, "env has a text for each name"),
        ("launch", {"command": ["t.py"], "launcher": "ssh"}, "launcher is one of per-node, per-gpu"),
    ],
)
def test_a_wrong_call_is_an_error(name: str, arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        words(name, **arguments)
    assert caught.value.fix


@given(st.sampled_from(["rank", "grep", "attempt"]), st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_no_text_of_a_caller_is_a_word_of_its_own(name: str, text: str) -> None:
    assert words("logs", **{name: text}) == ["logs", f"--{name}={text}", "--lines=200"]


def test_actions_are_tools_only_if_they_are_allowed() -> None:
    assert tools.find("stop", ["stop"]).changes
    with pytest.raises(UsageError, match="the tool launch is not allowed"):
        tools.find("launch", ["stop"])
    with pytest.raises(UsageError, match="there is no tool 'fly'"):
        tools.find("fly", tools.ACTIONS)


def test_allow_takes_launch_and_stop_only() -> None:
    assert (tools.allowed(""), tools.allowed("stop, launch,stop")) == ((), ("stop", "launch"))
    with pytest.raises(UsageError, match="--allow is launch, stop or launch,stop, got 'sync'"):
        tools.allowed("launch,sync")


def test_long_parts_are_left_out_unless_they_are_wanted() -> None:
    document = {"ok": True, "nodes": [{"host": "a", "facts": {"x": 1}}]}
    assert tools.reduced(tool("doctor"), document, {}) == {"ok": True, "nodes": [{"host": "a"}]}
    assert tools.reduced(tool("doctor"), document, {"facts": True}) == document
    assert tools.reduced(tool("stacks"), {"ranks": [1], "groups": []}, {}) == {"groups": []}
    assert tools.reduced(tool("jobs"), [{"job": "x"}], {}) == {"jobs": [{"job": "x"}]}


def test_a_long_text_loses_its_middle() -> None:
    assert tools.shortened("abc", 3) == "abc"
    found = tools.shortened("a" * 100 + "b" * 100, 40)
    assert found.splitlines() == ["a" * 10, "… 160 characters left out: ask for fewer lines or ranks …", "b" * 30]
