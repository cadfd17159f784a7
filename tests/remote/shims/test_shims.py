"""All programs that launchers put on the nodes: what they import, and a signal while they start."""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.remote.shims.programs import SHIMS, begin, ended, write_nodes
from torchfab.remote import procfs

# Modules that a shim may import: the launcher that it wraps, the library that it measures, what travels beside it.
ALLOWED = {
    "call": {"cloudpickle"},
    "colossalai_run": {"fabric", "colossalai"},
    "network_benchmark": {"torch"},
    "rank_profile": {"torch"},
}


@pytest.mark.parametrize("path", SHIMS, ids=lambda path: path.stem)
def test_a_shim_is_python_3_9_and_imports_nothing_of_torchfab(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = [name for name in imported if name != "rsh" or path.stem != "head"]
    outside = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert outside <= ALLOWED.get(path.stem, set())


# A shim that gets a signal at the very moment at which it starts its command.
SIGNALLED = """
import os, runpy, signal, subprocess, sys
class Popen(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        super().__init__(*args, **kwargs)
subprocess.Popen = Popen
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("rank.py", "--logs", "sleep", "60"), -signal.SIGTERM),
        (("head.py", "sleep", "60"), 128 + signal.SIGTERM),
        (("relay.py", "await"), 128 + signal.SIGTERM),
    ],
    ids=["rank", "head", "relay"],
)
def test_a_signal_that_arrives_while_the_command_starts_is_forwarded(
    place: Path, words: tuple[str, ...], code: int
) -> None:
    write_nodes(place, {})
    sender = {"pid": os.getpid(), "start": procfs.start_time(os.getpid())}
    (place / "command.json").write_text(json.dumps({"text": "exec sleep 60", **sender}))
    process = begin(("-c", SIGNALLED, str(place / words[0]), *words[1:]), env={"RANK": "0"})
    assert ended(process)[0] == code
