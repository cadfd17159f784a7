"""Ports on which a program of this user listens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.remote.host import listeners

SERVER = (
    "import socket,sys; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1],flush=True); sys.stdin.read()"
)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("/venv/bin/python /venv/bin/tensorboard --logdir runs", True),
        ("tensorboard --logdir runs", True),
        ("python3 -m tensorboard.main --logdir runs", True),
        ("python3 /lib/site-packages/tensorboard/main.py", True),
        ("/lib/tensorboard_data_server/bin/server --logdir=runs", False),
        ("vi tensorboard.py", False),
        ("python train.py --name x tensorboard", False),
    ],
)
def test_a_command_line_runs_the_program(argv: str, expected: bool) -> None:
    assert listeners.runs(argv.split(), "tensorboard") is expected


def test_the_port_of_a_running_program_is_found(tmp_path: Path) -> None:
    script = tmp_path / "someboard"
    script.write_text(SERVER)
    with subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        (found,) = listeners.find({"program": "someboard"})["listeners"]
        process.communicate(b"")
    assert (found["address"], found["port"], found["pid"]) == ("127.0.0.1", port, process.pid)


def test_a_line_of_the_kernel_is_read() -> None:
    end = "00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 100 0 0 10 0"
    assert listeners.parse_line(f"0: 00000000:1776 {end}") == ("localhost", 6006, "4242")
    assert listeners.parse_line(f"0: {'0' * 32}:1776 {end}") == ("localhost", 6006, "4242")
    assert listeners.parse_line("0: 00000000:1776 " + end.replace(" 0A ", " 01 ")) is None
    if sys.byteorder == "little":
        assert listeners.parse_line(f"0: 0100007F:1776 {end}") == ("127.0.0.1", 6006, "4242")


@fuzzed(st.text(alphabet="0A: \nzF", max_size=60))
def test_a_broken_line_is_left_out(line: str) -> None:
    assert listeners.parse_line(line) is None or " 0A " in line
