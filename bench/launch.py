#!/usr/bin/env python
"""Measure launching: `inv bench-launch`. Writes tables with the goals, a plot and profiles into bench/results/.

Torchfab and the alternatives take turns on the same rehearsal hosts (loopback addresses of this machine, sixteen per
sshd), several rounds; every figure is a median. On one machine the nodes' work (sshd, interpreters, tmux) uses the same
cores. It is reported separately from the client's, which is what counts on a real cluster.

Every result is saved immediately (bench/results/launch.jsonl), so that parts can run one by one and stop anywhere.
A saved result is not measured again without --fresh. The tables use all saved results.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
from launching import report, tools  # noqa: E402 (they are beside this file, outside any package)
from launching.hosts import KEY_EXCHANGES  # noqa: E402
from launching.parts import FAN_OUT_TOOLS, PARTS, Options  # noqa: E402
from launching.store import Store  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
VENV = ROOT / ".cache" / "bench-venv"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure (default: all)")
    add("--hosts", nargs="+", type=int, default=[2, 16, 64, 256, 1000], help="numbers of hosts (2 16 64 256 1000)")
    add("--rounds", type=int, default=3, help="turns of each tool (default 3)")
    add("--limit", type=float, default=300, help="seconds that a command may take (default 300)")
    add("--tools", nargs="+", choices=FAN_OUT_TOOLS, default=list(FAN_OUT_TOOLS), help="tools to compare (all)")
    add("--kex", nargs="+", choices=KEY_EXCHANGES, default=["curve25519"], help="key exchanges (curve25519)")
    add("--stop-after", type=float, default=1e9, help="seconds after which no further measurement begins")
    add("--fresh", action="store_true", help="delete the saved results of these parts first")
    add("--program", type=Path, default=ROOT, help="another working tree of torchfab, for the parts ranks and records")
    add(
        "--before", type=Path, default=RESULTS / "launch-before.jsonl", help="results of an earlier version, to compare"
    )
    add("--results", type=Path, default=RESULTS, help="folder of the results (bench/results)")
    add("--render", action="store_true", help="write the tables from saved results; measure nothing")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace, store: Store) -> None:
    """Run every step without a saved result."""
    found = tools.versions(VENV)
    installed = tuple(tool for tool in options.tools if found[tool])
    for tool in sorted(set(options.tools) - set(installed)):
        print(f"{tool} is not installed: its rows stay empty", file=sys.stderr)
    kex = tuple(options.kex)
    requested = Options(tuple(options.hosts), options.rounds, options.limit, VENV, installed, kex, options.program)
    deadline = time.monotonic() + options.stop_after
    for part in options.only:
        for key, act in PARTS[part](requested):
            if store.has(key):
                continue
            if time.monotonic() > deadline:
                print("time is up: the same command continues from here", file=sys.stderr)
                return
            begun = time.monotonic()
            values = _values(act)
            store.add(key, {**values, "when": time.strftime("%Y-%m-%d"), "versions": found})
            print(f"{time.monotonic() - begun:6.1f} s  {_line(key, values)}", flush=True)


def _values(act: Any) -> dict[str, Any]:
    try:
        values: dict[str, Any] = act()
    except Exception as error:  # the other measurements are still useful
        return {"code": -1, "said": f"{type(error).__name__}: {error}"}
    return values


def _line(key: dict[str, Any], values: dict[str, Any]) -> str:
    shown = {name: round(value, 2) for name, value in values.items() if isinstance(value, (int, float))}
    what = " ".join(str(value) for value in key.values())
    return f"{what}: " + " ".join(f"{name}={value}" for name, value in shown.items())


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, then write the tables."""
    options = parse_arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts are taken down
    store = Store(options.results / "launch.jsonl")
    if options.fresh:
        for part in options.only:
            store.drop(part)
    if not options.render:
        tools.install(VENV)
        measure(options, store)
    text = report.write(store, options.results, Store(options.before))
    if options.results == RESULTS:
        report.write_into(ROOT / "docs" / "scale.md", report.cost_model(store))
    print(text)


if __name__ == "__main__":
    main()
