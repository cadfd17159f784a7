"""Flags, parsed by Invoke's real parser."""

from __future__ import annotations

from typing import Any

import pytest
from fabric.main import Fab, make_program
from invoke import Collection, ParseError
from invoke.parser import Parser

import fabfile
from tests.hostile import texts
from tests.support import fuzzed
from torchfab.cli.flags import GpuLaunchFlags, LaunchFlags, job_task, launch_task
from torchfab.core.flag_values import flag
from torchfab.launchers import per_gpu, per_node

CONTEXTS = Collection.from_module(fabfile).to_contexts()


def parse(*argv: str) -> dict[str, Any]:
    """Return the values of the only task of a command line, defaults included."""
    (_, task) = parse_all(*argv)
    return task


def parse_all(*argv: str) -> list[dict[str, Any]]:
    core = make_program().initial_context
    return [
        {name: argument.value for name, argument in context.args.items()}
        for context in Parser(initial=core, contexts=CONTEXTS).parse_argv(list(argv))
    ]


def test_help_may_follow_the_task() -> None:
    assert parse_all("status", "--help")[0]["help"] == "status"


STATUS = {"job": "", "watch": False, "json": False, "stall": ""}
LOGS = {
    "job": "",
    "follow": False,
    "rank": "",
    "lines": "",
    "all": False,
    "grep": "",
    "no-fold": False,
    "stall": "",
    "attempt": "",
}


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        (["status"], STATUS),
        (["status", "gpt2"], {**STATUS, "job": "gpt2"}),
        (["status", "gpt2", "--json"], {**STATUS, "job": "gpt2", "json": True}),
        (["status", "--json", "gpt2"], {**STATUS, "job": "gpt2", "json": True}),
        (["status", "--json"], {**STATUS, "json": True}),
        (["status", "--watch", "--json"], {**STATUS, "watch": True, "json": True}),
        (["status", "--job", "gpt2"], {**STATUS, "job": "gpt2"}),
        (["logs", "--lines", "5", "gpt2", "--follow"], {**LOGS, "lines": "5", "job": "gpt2", "follow": True}),
        (["logs", "--lines=5", "--rank", "0,2-5"], {**LOGS, "lines": "5", "rank": "0,2-5"}),
        (["logs", "--grep", "loss: (nan|inf)", "--no-fold"], {**LOGS, "grep": "loss: (nan|inf)", "no-fold": True}),
        (["wait"], {"job": ""}),
        (["wait", "gpt2"], {"job": "gpt2"}),
        (["stop", "gpt2", "--grace", "3"], {"job": "gpt2", "grace": "3"}),
        (["attach", "--rank", "3", "gpt2"], {"job": "gpt2", "node": "", "rank": "3"}),
        (["jobs", "--json"], {"job": "", "json": True, "remove": False, "events": False}),
        (["jobs", "--remove", "gpt2"], {"job": "gpt2", "json": False, "remove": True, "events": False}),
    ],
)  # fmt: skip
def test_a_job_may_be_named_anywhere_or_left_out(argv: list[str], values: dict[str, Any]) -> None:
    found = parse(*argv)
    assert {name.replace("_", "-"): value for name, value in found.items()} == values


@pytest.mark.parametrize(
    ("argv", "job", "name"),
    [
        (["signal", "gpt2", "USR1"], "gpt2", "USR1"),
        (["signal", "USR1"], "USR1", ""),
        (["signal", "gpt2", "--rank", "3", "USR1"], "gpt2", "USR1"),
        (["signal", "--signal", "USR1"], "", "USR1"),
    ],
)
def test_a_signal_follows_its_job(argv: list[str], job: str, name: str) -> None:
    found = parse(*argv)
    assert (found["job"], found["signal"]) == (job, name)
    with pytest.raises(ParseError, match="other"):
        parse("signal", "gpt2", "USR1", "other")


def test_a_second_positional_argument_is_an_error() -> None:
    with pytest.raises(ParseError, match="other"):
        parse("status", "gpt2", "other")


def test_several_tasks_in_one_call_have_their_own_jobs() -> None:
    _, first, second = parse_all("stop", "a", "wait", "b")
    assert (first["job"], second["job"]) == ("a", "b")


def test_a_job_may_have_the_name_of_a_task() -> None:
    assert parse("status", "jobs", "--json") == {**STATUS, "job": "jobs", "json": True}


def test_the_env_flag_is_repeatable() -> None:
    assert parse("launch-per-node", "--env", "A=1", "--env", "B=2")["env"] == ["A=1", "B=2"]
    assert parse("launch-per-node")["env"] == []


@fuzzed(texts().filter(lambda text: not text.startswith("-")))
def test_the_value_of_a_flag_is_kept_byte_for_byte(text: str) -> None:
    assert parse("launch-per-node", "--env", f"A={text}")["env"] == [f"A={text}"]
    assert parse("launch-per-node", f"--workdir=/{text}")["workdir"] == f"/{text}"


def test_an_unknown_flag_is_an_error() -> None:
    with pytest.raises(ParseError, match="--bogus"):
        parse("launch-per-node", "--bogus")


def test_every_launch_takes_the_shared_flags_and_its_own() -> None:
    shared = {"name", "env", "dry-run", "follow", "workdir", "python", "port", "master-addr", "grace", "nodes"}
    shared |= {"supervise", "restarts", "stall", "backoff", "notify", "tmux", "setup", "before", "after", "no-probe"}
    node, gpu = (next(each for each in CONTEXTS if each.name == name) for name in ("launch-per-node", "launch-per-gpu"))
    own = {"nproc-per-node", "nnodes", "max-restarts", "rdzv-backend", "rdzv-timeout"}
    assert {name.replace("_", "-") for name in node.args} == shared | {"hostfile", "hostfile-format"} | own
    assert {name.replace("_", "-") for name in gpu.args} == shared | {"gpufile", "hostfile-format"}


def test_no_flag_has_a_short_form_that_could_clash_with_fabrics() -> None:
    assert not [name for context in CONTEXTS for name in context.flags if not name.startswith("--")]


def test_every_flag_of_every_task_has_help() -> None:
    missing = [
        f"{context.name} {name}"
        for context in CONTEXTS
        for name, argument in context.args.items()
        if not (argument.help or "").strip()
    ]
    assert CONTEXTS
    assert not missing


# ---- the arguments of a task's body


def call_body(task: Any, **values: Any) -> Any:
    return task.body("the context", **values)


def test_the_body_of_a_launch_gets_dataclasses() -> None:
    @launch_task(lambda: per_node.Flags)
    def launch(c: Any, flags: LaunchFlags, own: per_node.Flags) -> tuple[Any, LaunchFlags, per_node.Flags]:
        """Launch."""
        return c, flags, own

    got = call_body(launch, name="gpt2", env=["A=1", "B=2"], nproc_per_node="4")
    assert got == ("the context", LaunchFlags(name="gpt2", env=("A=1", "B=2")), per_node.Flags(nproc_per_node="4"))


def test_the_body_of_a_launch_over_gpus_gets_a_gpufile() -> None:
    @launch_task(lambda: per_gpu.Flags, GpuLaunchFlags)
    def launch(c: Any, flags: LaunchFlags, own: per_gpu.Flags) -> LaunchFlags:
        """Launch."""
        return flags

    assert call_body(launch, gpufile="my gpus") == GpuLaunchFlags(gpufile="my gpus")


def test_the_body_of_a_job_task_gets_the_job_and_its_flags() -> None:
    @job_task(json=flag(False, "Print JSON."))
    def show(c: Any, job: str, json: bool) -> tuple[str, bool]:
        """Show."""
        return job, json

    assert call_body(show, job="gpt2", json=True) == ("gpt2", True)
    assert (show.name, show.__doc__) == ("show", "Show.")


def test_the_program_is_fabrics_own() -> None:
    assert isinstance(make_program(), Fab)
