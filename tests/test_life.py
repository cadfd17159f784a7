"""The life of a job: what its commands are told on the command line."""

from __future__ import annotations

import sys

import pytest

from torchfab.errors import UsageError
from torchfab.life.attach import attach
from torchfab.life.logs import log_request


@pytest.mark.parametrize("grep", ["(", "a{99999999999999999999}"])
def test_what_is_no_regular_expression_is_told(grep: str) -> None:
    with pytest.raises(UsageError, match="is no regular expression"):
        log_request("", "", grep, follow=False)


@pytest.mark.parametrize("lines", ["-1", "x", "9" * 5000])
def test_what_is_no_number_of_lines_is_told(lines: str) -> None:
    with pytest.raises(UsageError, match="--lines is a number or all"):
        log_request("", lines, "", follow=False)


def test_a_program_that_attach_needs_and_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=r"needs kubectl on this machine: No such file"):
        attach(("kubectl", "exec", "-it", "pod"))
