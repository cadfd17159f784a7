"""The life of a job: what its commands are told on the command line."""

from __future__ import annotations

import sys

import pytest

from torchfab.errors import UsageError
from torchfab.life.attach import attach


def test_a_program_that_attach_needs_and_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=r"needs kubectl on this machine: No such file"):
        attach(("kubectl", "exec", "-it", "pod"))
