"""Start the programs of torchfab/remote/shims exactly as they run on a node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SHIMS = sorted((Path(__file__).parents[3] / "torchfab" / "remote" / "shims").glob("*.py"))

started: list[subprocess.Popen[str]] = []  # the fixture `_end_processes` ends them


def start(place: Path, shim: str, *args: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return begin((str(place / f"{shim}.py"), *args), env)


def begin(words: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start Python with these words."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHFAB", "RANK", "PMI"))}
    argv = (sys.executable, "-I", "-S", *words)
    started.append(subprocess.Popen(argv, env={**clean, **(env or {})}, stdout=subprocess.PIPE, text=True))
    return started[-1]


def run(place: Path, shim: str, *args: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    return ended(start(place, shim, *args, env=env))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; return its exit code and stdout."""
    stdout, _ = process.communicate(timeout=60)
    return process.returncode, stdout


def write_nodes(place: Path, nodes: Mapping[str, Mapping[str, object]], fail_fast: bool = False) -> None:
    (place / "nodes.json").write_text(json.dumps({"nodes": nodes, "fail_fast": fail_fast}))
