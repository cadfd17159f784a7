"""The program that heads use in the place of ssh, run here exactly as on a node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.remote.shims.programs import run, write_nodes


def program(place: Path, name: str) -> None:
    """Create a program that prints its arguments, in a folder of PATH."""
    path = place / name
    path.write_text(f"#!{sys.executable}\nimport json, sys; print(json.dumps(sys.argv[1:]))\n")
    path.chmod(0o755)


def test_the_rsh_agent_delivers_the_command_to_the_relay(place: Path) -> None:
    program(place, "ssh")
    write_nodes(
        place, {"10.0.0.2": {"ssh": ["ssh", "-F", "/nowhere", "-p", "22", "--", "b"], "gate": ["gate", "deliver"]}}
    )
    path = {"PATH": f"{place / 'bin'}:{place}:/usr/bin:/bin"}
    code, stdout = run(place, "rsh", "-2", "-x", "-l", "root", "10.0.0.2", "cd /;", 'echo "a b"', env=path)
    # The ssh configuration of the launch machine does not exist here, so -F is dropped.
    assert (code, json.loads(stdout)) == (0, ["-p", "22", "--", "b", "exec gate deliver 'cd /; echo \"a b\"'"])


def test_a_node_without_a_relay_runs_the_command_here(place: Path) -> None:
    write_nodes(place, {"a": {"ssh": [], "gate": []}})
    assert run(place, "rsh", "-x", "a", "echo", "$((1 + 1))", "; exit 3") == (3, "2\n")


def test_the_pkill_of_deepspeed_is_not_run(place: Path) -> None:
    write_nodes(place, {"a": {"ssh": [], "gate": []}})
    assert run(place, "rsh", "a", "pkill -f ", "nothing; echo ran") == (0, "")


def test_a_host_outside_the_job_is_rejected(place: Path) -> None:
    write_nodes(place, {"a": {"ssh": [], "gate": []}})
    assert run(place, "rsh", "b", "echo ran") == (255, "")


def test_a_failing_node_ends_the_head(place: Path) -> None:
    write_nodes(place, {"a": {"ssh": [], "gate": []}}, fail_fast=True)
    code = "import subprocess, sys, time; subprocess.run(sys.argv[1:]); time.sleep(60)"
    argv = (sys.executable, "-c", code, sys.executable, str(place / "rsh.py"), "a", "exit 7")
    head = subprocess.Popen(argv, env={**os.environ, "TORCHFAB_JOB_ID": "x-1"})
    assert head.wait(60) == -signal.SIGTERM
