"""What was meant by words that Invoke's parser refuses, through the clone's own tasks."""

from __future__ import annotations

import pytest
from fabric.main import make_program
from invoke import Collection, ParseError
from invoke.parser import Parser

import fabfile
from tests.hostile import texts
from tests.support import fuzzed
from torchfab.cli import parse_errors
from torchfab.core.errors import UsageError

COLLECTION = Collection.from_module(fabfile)
CONTEXTS = COLLECTION.to_contexts()
TASKS = sorted(COLLECTION.task_names)


def refused(*words: str) -> str:
    """Return what is printed for a command line that the parser refuses."""
    core = make_program().initial_context
    try:
        Parser(initial=core, contexts=CONTEXTS).parse_argv(list(words))
    except ParseError as error:
        return str(parse_errors.parse_error(error, error.__traceback__, TASKS) or error)
    return ""


SCRIPT = "your script and its arguments go after --: fab "


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("statsu", "there is no task statsu; did you mean status?"),
        ("STATUS", "there is no task STATUS; did you mean status?"),
        ("launch_per_node", "there is no task launch_per_node; did you mean launch-per-node?"),
        ("launch-pernode --follow", "there is no task launch-pernode; did you mean launch-per-node?"),
        ("superv", "there is no task superv; did you mean supervise?"),
        ("kill gpt2", "there is no task kill; did you mean stop?"),
        ("ps", "there is no task ps; did you mean jobs?"),
        ("xyzzy", "there is no task xyzzy; fab --list lists them"),
        ("doctor node1", "doctor does not take 'node1', and there is no task of that name; fab --list lists them"),
        ("status a b", "status takes one job, got 'b' in addition"),
        ("launch-per-gpu --hostfile x", "launch-per-gpu has no flag --hostfile; did you mean --gpufile?"),
        ("launch-per-node --gpufile x", "launch-per-node has no flag --gpufile; did you mean --hostfile?"),
        ("launch-per-node --hostfiel x", "launch-per-node has no flag --hostfiel; did you mean --hostfile?"),
        ("launch-per-node --nproc_per_node=2", "no flag --nproc_per_node; did you mean --nproc-per-node?"),
        ("launch-per-node -name x", "launch-per-node has no flag -name; did you mean --name?"),
        ("launch-per-node --xyzzy", "lists them; flags of your script go after --"),
        ("status --watchh", "status has no flag --watchh; did you mean --watch?"),
        ("--lsit", "fab has no flag --lsit; did you mean --list?"),
        ("logs --lines", "--lines needs a value; fab --help logs explains it"),
        ("launch-per-node --name --follow", "--name needs a value"),
        ("jobs -H", "-H (--hosts) needs a value"),
        ("launch-per-node --name a --name b", "--name is given twice, the second time with 'b'"),
        ("launch-per-node --hosts a --hosts b", "--hosts is given twice, the second time with 'b'"),
        ("status x -H a -H b", "-H is given twice, the second time with 'b'"),
        ("launch-per-node --workdir /a --workdir=/b", "--workdir is given twice, the second time with '/b'"),
        ("launch-per-node --follow yes", "--follow takes no value, got 'yes'"),
        ("train.py --lr 3", SCRIPT + "launch-per-node -- train.py --lr 3"),
        ("launch-per-node train.py", SCRIPT + "launch-per-node -- train.py"),
        ("launch-mpi --name a train.py --lr 3", SCRIPT + "launch-mpi --name a -- train.py --lr 3"),
        ("launch-per-node --name=a train.py --x=1", SCRIPT + "launch-per-node --name=a -- train.py --x=1"),
        ("launch-per-node --follow train.py", SCRIPT + "launch-per-node --follow -- train.py"),
        ("launch-per-node -m pkg.train", SCRIPT + "launch-per-node -- -m pkg.train"),
        ("run nvidia-smi", "the command goes after --: fab run -- nvidia-smi"),
        ("run --timeout 5 ls -l", "the command goes after --: fab run --timeout 5 -- ls -l"),
        ("run --xyzzy", "run has no flag --xyzzy; fab --help run lists them; the command goes after --"),
        ("launch --follow", "there is no task launch; did you mean launch-per-node?"),
        ("python train.py --lr 3", SCRIPT + "launch-per-node -- python train.py --lr 3"),
        ("exec ls", "there is no task exec; did you mean run?"),
        ("launch-per-node statsu", "there is no task of that name; did you mean status?"),
    ],
)  # fmt: skip
def test_a_refused_word_says_what_was_meant_in_one_line(line: str, expected: str) -> None:
    said = refused(*line.split())
    assert expected in said
    assert "\n" not in said


def test_every_synonym_names_a_task_or_a_flag() -> None:
    core = make_program().initial_context
    assert set(parse_errors.SYNONYMS.values()) <= {*TASKS, *core.flags}
    assert not set(parse_errors.SYNONYMS) & set(TASKS)


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("launch-per-node --env", "--env"),
        ("launch-per-node --env A=1 --env", "--env"),
        ("launch-per-node --env --name x", "--env"),
        ("-i", "-i (--identity)"),
        ("launch-per-node --env A=1", ""),
        ("launch-per-node --env --x=1", ""),
    ],
)
def test_a_flag_that_may_repeat_needs_its_value(line: str, flag: str) -> None:
    core = make_program().initial_context
    assert parse_errors.list_flag_without_value(line.split(), [core, *CONTEXTS]) == flag


@fuzzed(texts())
def test_any_word_is_explained_without_a_traceback(word: str) -> None:
    mistake = parse_errors.Mistake(word, ("launch-per-node", word), 1, "launch-per-node", tasks=("status",))
    assert isinstance(parse_errors.explain(mistake), UsageError)
