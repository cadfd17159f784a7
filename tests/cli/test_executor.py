"""How `fab` runs tasks: the arguments after `--`, errors as text."""

from __future__ import annotations

import io
import sys

import fabric
import invoke
import pytest
from fabric.main import program
from hypothesis import given
from hypothesis import strategies as st
from invoke.parser import Parser

from tests.hostile import HOSTILE, texts
from tests.support import fuzzed
from torchfab.cli.executor import Executor, args_after_dashes, check_hosts_flag
from torchfab.core.console import fold_reasons, print_error, write_out
from torchfab.core.errors import HostsFailedError, TorchfabError, UsageError

BEFORE = st.lists(texts().filter(lambda word: word != "--"), max_size=4)


@fuzzed(BEFORE, st.lists(texts(), max_size=6))
def test_arguments_after_the_first_dashes_are_kept_byte_for_byte(before: list[str], after: list[str]) -> None:
    assert args_after_dashes(["fab", *before, "--", *after]) == tuple(after)


@given(BEFORE)
def test_without_dashes_the_script_is_none(before: list[str]) -> None:
    assert args_after_dashes(["fab", *before]) is None


def test_dashes_without_arguments_are_an_empty_tuple() -> None:
    assert args_after_dashes(["fab", "launch-per-node", "--"]) == ()


def test_later_dashes_belong_to_the_script() -> None:
    assert args_after_dashes(["fab", "x", "--", "a", "--", "--", "b"]) == ("a", "--", "--", "b")


def test_the_value_of_the_hosts_flag_must_not_be_empty() -> None:
    assert check_hosts_flag(None) == ""
    assert check_hosts_flag("a,b") == "a,b"
    with pytest.raises(UsageError, match="-H is empty"):
        check_hosts_flag("")


@pytest.mark.parametrize("flag", ["-R", "--dry"])
def test_the_dry_run_flag_of_fabric_itself_is_rejected(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    core = Parser(initial=program.initial_context, ignore_unknown=True).parse_argv([flag])
    with pytest.raises(SystemExit) as ended:
        Executor(invoke.Collection(), fabric.Config(overrides={"torchfab": {}}), core).execute()
    assert ended.value.code == UsageError.exit_code
    assert capsys.readouterr().err.endswith("after the task: --dry-run\n")


def failed(**reasons: TorchfabError) -> HostsFailedError:
    return HostsFailedError("2 of 4 hosts failed; nothing was started", reasons)


def test_equal_failures_of_several_hosts_are_one_paragraph() -> None:
    refused = {
        f"node{number}": TorchfabError(f"node{number} port 22 refused", f"ssh node{number}") for number in (1, 2, 3)
    }
    assert fold_reasons(failed(**refused, other=TorchfabError("disk full"))) == [
        "  node[1-3]: HOST port 22 refused\n      fix: ssh HOST",
        "  other: disk full",
    ]


def test_the_reason_of_a_single_failed_host_keeps_its_name() -> None:
    assert fold_reasons(failed(node1=TorchfabError("node1 refused"))) == ["  node1: node1 refused"]


def test_a_host_name_within_another_word_is_not_replaced() -> None:
    reasons = {"a": TorchfabError("a was refused by a-team"), "b": TorchfabError("b was refused by a-team")}
    assert fold_reasons(failed(**reasons)) == ["  a,b: HOST was refused by a-team"]


def test_braces_in_a_reason_are_kept() -> None:
    assert fold_reasons(failed(node1=TorchfabError("{host} {0}"))) == ["  node1: {host} {0}"]


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9]{1,3}(\.[a-z0-9]{1,3})?", fullmatch=True), texts(), min_size=1, max_size=6
    )
)
def test_every_failed_host_is_in_a_paragraph(reasons: dict[str, str]) -> None:
    from torchfab.core.inventory import parse_hosts_flag

    paragraphs = fold_reasons(failed(**{host: TorchfabError(text) for host, text in reasons.items()}))
    named = [node.host for each in paragraphs for node in parse_hosts_flag(each[2:].partition(":")[0])]
    assert sorted(named) == sorted(reasons)


def test_an_error_is_printed_with_its_fix_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(UsageError("hosts:3: bad", "write it well"))
    assert capsys.readouterr() == ("", "error: hosts:3: bad\n  fix: write it well\n")


def test_failed_hosts_are_printed_with_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(failed(node1=TorchfabError("disk full", "free space")))
    assert capsys.readouterr().err == (
        "error: 2 of 4 hosts failed; nothing was started\n  node1: disk full\n      fix: free space\n"
    )


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
def test_any_bytes_in_a_result_are_printed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    write_out(text)
    assert raw.getvalue() == text.encode("utf-8", "surrogateescape") + b"\n"


def test_each_error_type_has_its_exit_code() -> None:
    assert [error.exit_code for error in (TorchfabError("x"), UsageError("x"), failed())] == [1, 2, 1]
