"""A missing stack is explained, with a fix."""

from __future__ import annotations

from typing import Any

import pytest

from tests.stacks.factories import PRIVATE, rank
from torchfab.stacks.refusals import explain


@pytest.mark.parametrize(
    ("problem", "rights", "words", "fix"),
    [
        ("Permission Denied: Try running again", {"ptrace_scope": "1", "uid": 1000}, "ptrace_scope is 1", "sysctl"),
        (PRIVATE, {"ptrace_scope": "2", "uid": 1000}, "ptrace_scope is 2 (only root)", "ptrace_scope=0"),
        (PRIVATE, {"ptrace_scope": "3", "uid": 0, "cap_sys_ptrace": True}, "is 3 (nobody", "faulthandler"),
        (
            PRIVATE,
            {"ptrace_scope": "0", "uid": 0, "cap_sys_ptrace": False},
            "no CAP_SYS_PTRACE",
            "--cap-add SYS_PTRACE",
        ),
        (PRIVATE, {"ptrace_scope": "", "uid": 1000}, "another user", "log in as the user"),
        ("there is no py-spy", {}, "no py-spy there", "pip install 'torchfab[stacks]' here"),
        (
            "Failed to find python version from target process",
            {},
            "does not recognise it as a Python program",
            "faulthandler",
        ),
        ("no answer from py-spy within 10 s", {}, "no answer", "--timeout 60"),
        ("boom", {}, "py-spy: boom", "faulthandler"),
    ],
)
def test_missing_stack_is_explained_with_a_fix(problem: str, rights: dict[str, Any], words: str, fix: str) -> None:
    what, how = explain(rank(0, (), problem=problem, signal="it does not catch SIGUSR2"), rights)
    assert words in what
    assert "by signal: it does not catch SIGUSR2" in what
    assert fix in how


def test_attached_debugger_is_named() -> None:
    assert explain(rank(0, (), tracer=77), {})[1] == "end that one first: kill 77"
