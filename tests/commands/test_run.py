"""`fab run`: what the words behind `--` are, and how the results of all hosts are shown."""

from __future__ import annotations

import pytest

from tests.factories import make_nodes
from tests.hostile import texts
from tests.json_documents import checked
from tests.support import fuzzed
from torchfab.commands import run
from torchfab.core.errors import HostError, UsageError
from torchfab.transport.messages.run import RunEnd
from torchfab.transport.remote_command import HostRun

NODES = make_nodes("node1", "node2", "node3", "node4")


def end(code: int | None = 0, *, timed_out: bool = False, stopped: bool = False, left: tuple[str, ...] = ()) -> RunEnd:
    return RunEnd(code=code, timed_out=timed_out, stopped=stopped, seconds=5.2, dropped=0, left=list(left))


def runs(*ends: RunEnd | HostError, out: str = "same") -> list[HostRun]:
    return [
        HostRun(node, [out], [], None, each) if isinstance(each, HostError) else HostRun(node, [out], [], each)
        for node, each in zip(NODES, ends, strict=False)
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("nvidia-smi", "-L"),
        ("df",),
        ("bash", "-c", "nvidia-smi | head"),
        ("grep", "a b", "x; rm y"),
        ("/opt/my tool/x",),
    ],
)
def test_words_are_the_command_as_they_stand(words: tuple[str, ...]) -> None:
    assert run.command_of(words, lambda name: False) == words


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "needs a command after --\n  fix: for example: fab run -- nvidia-smi -L"),
        (("",), "needs a command after --"),
        (("nvidia-smi | head",), "no shell interprets it on the hosts\n  fix: fab run -- bash -c 'nvidia-smi | head'"),
        (("ls -l",), "fix: fab run -- bash -c 'ls -l'"),
        (("echo;ls",), "fix: fab run -- bash -c 'echo;ls'"),
        (("A=1", "env"), "fix: fab run --env A=… -- env"),
    ],
)
def test_words_for_a_shell_are_refused_with_the_line_that_works(words: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UsageError) as refused:
        run.command_of(words, lambda name: False)
    assert expected in str(refused.value)


def test_a_file_with_a_blank_in_its_name_is_a_command() -> None:
    assert run.command_of(("my tool",), lambda name: name == "my tool") == ("my tool",)


@fuzzed(texts())
def test_further_words_are_never_changed(word: str) -> None:
    assert run.command_of(("echo", word), lambda name: False) == ("echo", word)


def test_equal_output_is_printed_once_below_the_folded_names() -> None:
    hosts = [HostRun(NODES[0], ["a", "", " b"]), HostRun(NODES[1], ["other"]), HostRun(NODES[2], ["a", "", " b"])]
    assert run.folded(hosts, lambda each: each.out) == ["node[1,3]:", "  a", "", "   b", "node2:", "  other"]
    assert run.folded(hosts, lambda each: each.err) == []


def test_hosts_without_output_are_named() -> None:
    silent = [HostRun(node, end=end()) for node in NODES]
    assert run.notes(silent) == ["node[1-4]: exit code 0, no output"]
    assert run.notes([HostRun(NODES[0], end=end(1))]) == []


def test_without_a_failure_there_is_no_error() -> None:
    assert run.failure(runs(end(), end())) is None


def test_the_error_names_every_failed_host_and_has_the_highest_exit_code() -> None:
    error = run.failure(runs(end(2), end(-9), end(timed_out=True), HostError("no answer")))
    assert error is not None
    assert str(error) == "the command failed on 4 of 4 hosts"
    assert {host: str(reason) for host, reason in error.reasons.items()} == {
        "node1": "exit code 2",
        "node2": "was killed by SIGKILL",
        "node3": "did not end within --timeout; it was ended after 5 s",
        "node4": "no answer",
    }
    assert error.exit_code == 137


@pytest.mark.parametrize(
    ("each", "code"), [(end(), 0), (end(3), 3), (end(-2), 130), (end(-15, timed_out=True), 124), (end(None), 1)]
)
def test_the_exit_code_of_a_host_is_that_of_a_shell(each: RunEnd, code: int) -> None:
    assert run.exit_code(HostRun(NODES[0], end=each)) == code


def test_ctrl_c_says_where_the_command_was_ended_and_where_it_may_run() -> None:
    stopped = end(-15, stopped=True)
    assert str(run.interrupted(runs(stopped, stopped))) == "interrupted: the command was ended on node[1-2]"
    error = run.interrupted(runs(stopped, end(None, stopped=True, left=("7 (x) of user root",)), HostError("gone")))
    assert str(error) == "interrupted: the command was ended on node1; 2 hosts failed"
    assert error.exit_code == 130


def test_the_document_has_the_output_and_the_errors_of_all_hosts() -> None:
    document = checked("run", run.to_json(runs(end(-9), HostError("no answer", "see to it"))))
    assert document == {
        "version": 1,
        "hosts": [
            {
                "host": "node1",
                "exit_code": 137,
                "signal": 9,
                "timed_out": False,
                "duration_s": 5.2,
                "stdout": "same",
                "stderr": "",
                "left_out_bytes": 0,
            }
        ],
        "failed": {"node2": {"error": "no answer", "fix": "see to it"}},
    }
