"""Words behind `--`: which tasks take them. And what the help shows for values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fabric.main import make_program
from invoke import Collection
from invoke.parser import Parser

import fabfile
from torchfab.cli.executor import check_words
from torchfab.cli.program import with_placeholders
from torchfab.core.errors import UsageError

COLLECTION = Collection.from_module(fabfile)
TASKS = sorted(COLLECTION.task_names)


@pytest.mark.parametrize("name", TASKS)
def test_only_launches_and_run_take_words(name: str) -> None:
    task = COLLECTION[name]
    if name == "run" or name.startswith("launch-"):
        check_words([task], ("x",))
        return
    with pytest.raises(UsageError) as refused:
        check_words([task], ("x", "a b"))
    assert (
        str(refused.value) == f"{name} takes nothing after --, got x 'a b'\n  fix: without the --: fab {name} x 'a b'"
    )


def test_no_words_are_never_an_error() -> None:
    for words in (None, ()):
        check_words([COLLECTION["logs"]], words)


def test_a_task_of_the_users_own_may_read_them() -> None:
    check_words([SimpleNamespace(name="own")], ("x",))


def test_one_task_of_several_that_takes_them_suffices() -> None:
    check_words([COLLECTION["sync"], COLLECTION["launch-per-node"]], ("x",))


def test_the_help_shows_numbers_as_such() -> None:
    placeholders = COLLECTION["logs"].placeholders
    shown = with_placeholders([("--lines=STRING", "a"), ("--grep=STRING", "b"), ("--follow", "c")], placeholders)
    assert shown == [("--lines=N|all", "a"), ("--grep=STRING", "b"), ("--follow", "c")]
    launch = COLLECTION["launch-per-node"].placeholders
    assert (launch["port"], launch["stall"], launch["env"], launch["name"]) == ("N", "SECONDS", "VALUE", "")


def test_the_help_shows_the_words_of_a_task_first() -> None:
    tuples = [("--to=STRING", "a"), ("--words=STRING", "b")]
    assert with_placeholders(tuples, COLLECTION["pull"].placeholders) == [("[job] PATH…", "b"), ("--to=STRING", "a")]


@pytest.mark.parametrize(
    ("line", "words"),
    [("pull", []), ("pull a", ["a"]), ("pull a --to x logs b", ["a", "logs", "b"])],
)
def test_a_task_takes_all_words_that_are_no_flags(line: str, words: list[str]) -> None:
    core = make_program().initial_context
    (found,) = Parser(initial=core, contexts=COLLECTION.to_contexts()).parse_argv(line.split())[1:]
    assert list(found.args["words"].value or ()) == words
