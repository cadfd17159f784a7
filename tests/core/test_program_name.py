"""Commands in our texts, as they are typed where torchfab is installed."""

from __future__ import annotations

import pytest

from torchfab.core.program_name import ProgramName

INSTALLED = ProgramName("torchfab", ["jobs", "launch-per-node", "logs", "status"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("next: fab logs --follow a | fab status a", "next: torchfab logs --follow a | torchfab status a"),
        ("fab -t 0; fab --list", "torchfab -t 0; torchfab --list"),
        ("`fab status` finds it", "`torchfab status` finds it"),
        ("fab launch-per-node -- fab.py", "torchfab launch-per-node -- fab.py"),
    ],
)
def test_commands_are_named_as_they_are_called(text: str, expected: str) -> None:
    assert INSTALLED.replace_in(text) == expected
    assert ProgramName().replace_in(text) == text


@pytest.mark.parametrize("text", ["fab  runs", "fab[1-2] failed", "me@fab status", "/opt/fab status", "fab statuses"])
def test_other_words_stay(text: str) -> None:
    assert INSTALLED.replace_in(text) == text
