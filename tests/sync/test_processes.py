"""rsync processes: their output, their failure, and their end on Ctrl-C."""

from __future__ import annotations

import threading
import time

import pytest

from torchfab.core.errors import HostError
from torchfab.sync.processes import RsyncProcesses


def test_a_process_reads_its_input_and_its_output_is_returned() -> None:
    assert RsyncProcesses().run(["cat"], stdin="é\n".encode()) == "é\n"


def test_each_piece_of_the_output_is_reported() -> None:
    pieces: list[str] = []
    RsyncProcesses().run(["echo", "10%"], progress=pieces.append)
    assert pieces == ["10%\n"]


def test_a_failure_is_an_error_with_what_it_printed() -> None:
    with pytest.raises(HostError, match="no such module"):
        RsyncProcesses().run(["sh", "-c", "echo no such module >&2; exit 5"])


def test_much_output_on_stderr_does_not_block() -> None:
    assert RsyncProcesses().run(["sh", "-c", "head -c 300000 /dev/zero >&2; echo done"]) == "done\n"


def test_end_terminates_what_runs() -> None:
    processes = RsyncProcesses()
    errors: list[Exception] = []

    def run() -> None:
        try:
            processes.run(["sleep", "60"])
        except HostError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not processes.running:
        time.sleep(0.01)
    processes.end()
    thread.join(60)
    assert len(errors) == 1
    assert not processes.running
