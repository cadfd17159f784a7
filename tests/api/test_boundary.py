"""What surrounds every call of the API: nothing is printed, and errors have their whole text."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import suppress

import pytest

from torchfab.api import boundary
from torchfab.api.boundary import iterate, quiet
from torchfab.core import console
from torchfab.core.errors import HostError, HostsFailedError, UsageError
from torchfab.core.program_name import ProgramName


def test_what_commands_print_is_logged(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "torchfab")
    with quiet():
        console.write_out("job a: 2 ranks, 100 %s")
        console.write_err("note: x")
        console.progress("preparing", 1, 2)
    assert capsys.readouterr() == ("", "")
    assert [(record.name, record.message) for record in caplog.records] == [
        ("torchfab", "job a: 2 ranks, 100 %s"),
        ("torchfab", "note: x"),
    ]
    console.write_out("again")
    assert capsys.readouterr().out == "again\n"


def test_an_error_has_the_reasons_of_all_hosts() -> None:
    reasons = {"a": HostError("a: refused", "start sshd"), "b": HostError("b: refused", "start sshd")}
    with pytest.raises(HostsFailedError) as caught, quiet():
        raise HostsFailedError("2 of 2 hosts failed; nothing was started", reasons)
    text = "2 of 2 hosts failed; nothing was started\n  [a-b]: HOST: refused\n      fix: start sshd"
    assert str(caught.value).replace("  a,b:", "  [a-b]:") == text
    with suppress(HostsFailedError), quiet():  # as when one call is made within another
        raise caught.value
    assert str(caught.value).count("refused") == 1


def test_commands_in_an_error_have_the_installed_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "_program_name", lambda: ProgramName("torchfab", None))
    with pytest.raises(UsageError) as caught, quiet():
        raise UsageError("job a was stopped", "fab jobs --remove a | fab status a; fabric (fab, pid 3) stays")
    assert caught.value.fix == "torchfab jobs --remove a | torchfab status a; fabric (fab, pid 3) stays"


def test_in_the_clone_commands_are_named_fab() -> None:
    with pytest.raises(UsageError, match="fab status a"), quiet():
        raise UsageError("fab status a")


def test_a_generator_works_quietly_and_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    closed = []

    def numbers() -> Generator[int, None, None]:
        try:
            for number in range(3):
                console.write_out("at work")
                yield number
        finally:
            closed.append(True)

    items = iterate(numbers())
    assert next(items) == 0
    console.write_out("between")
    items.close()  # type: ignore[attr-defined]
    assert closed == [True]
    assert list(iterate(numbers())) == [0, 1, 2]
    assert capsys.readouterr().out == "between\n"
