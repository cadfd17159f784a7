"""The host that log lines are about: per thread, nested; what of a command may be shown."""

from __future__ import annotations

import threading

import pytest

from torchfab.core.log_context import current_host, log_host, program_of


def test_the_host_is_that_of_the_innermost_block() -> None:
    assert current_host() == ""
    with log_host("node1"):
        with log_host("node1 via gate"):
            assert current_host() == "node1 via gate"
        assert current_host() == "node1"
    assert current_host() == ""


def test_the_host_of_one_thread_is_not_that_of_another() -> None:
    seen: list[str] = []
    with log_host("node1"):
        thread = threading.Thread(target=lambda: seen.append(current_host()))
        thread.start()
        thread.join()
    assert seen == [""]


@pytest.mark.parametrize(
    ("command", "program"),
    [("nc -X connect gate 22", "nc"), ("PASSWORD=x proxy --auth me:y", "proxy"), ("PASSWORD=x", ""), ("", "")],
)
def test_of_a_command_only_the_program_is_shown(command: str, program: str) -> None:
    assert program_of(command) == program
