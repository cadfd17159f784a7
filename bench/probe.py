#!/usr/bin/env python
"""Measure the probe of the ranks: `inv bench-probe`. Prints a table with the goals, and writes it into bench/results/.

All times are CPU times of one process, so that other work on the machine matters little. Step: blocks of steps with and
without the worker server take turns in one process; the flight recorder, which torch 2.13 has on by default, is on and
off in two processes. Every figure is a median, with its quartiles in brackets.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from torchfab.launchers.shims import source_of  # noqa: E402

RESULTS = ROOT / "bench" / "results"
START_GOAL_MS, STEP_GOAL = 20.0, 0.005
ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=30, help="How often each is measured. [30]")
    parser.add_argument("--inside", choices=["step", "start"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure_step(options.rounds) if options.inside == "step" else measure_start()))
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(source_of("probe"))
        lines = table(Path(folder), options.rounds)
    text = "\n".join(lines) + "\n"
    print(text)
    (RESULTS / "probe-cpu.md").write_text(text)


def table(folder: Path, rounds: int) -> list[str]:
    """Return the lines of the result.

    Parameters
    ----------
    folder : Path
        The folder of the probe.
    rounds : int
        How often each is measured.

    Returns
    -------
    list of str
        Markdown.
    """
    with_probe = {"PYTHONPATH": str(folder)}
    bare, probed = [], []
    for _ in range(rounds):  # in turns
        bare.append(interpreter_ms({}))
        probed.append(interpreter_ms(with_probe))
    first = statistics.median(probed) - statistics.median(bare)
    inside = run("start", with_probe, 1)
    start_ms = first + inside["server_ms"] + inside["hook_ms"]
    recorded = run("step", {**with_probe, "TORCH_FR_BUFFER_SIZE": "2000"}, rounds)
    unrecorded = run("step", {**with_probe, "TORCH_FR_BUFFER_SIZE": "0"}, rounds)
    pairs = zip(recorded["served"], recorded["bare"], strict=True)
    server = [served / bare - 1 for served, bare in pairs]
    is_free = statistics.median(server) <= STEP_GOAL
    each_us = 1000 * (min(recorded["reduce"]) - min(unrecorded["reduce"]))
    step_ms = statistics.median(recorded["bare"])
    rows = {
        "start of the interpreter": f"{first:.1f} ms",
        "finder, over the imports of torch": f"{inside['hook_ms']:.1f} ms",
        "start of the server": f"{inside['server_ms']:.1f} ms",
        "all of the start": f"{start_ms:.1f} ms | ≤ {START_GOAL_MS:g} ms: {met(start_ms <= START_GOAL_MS)}",
        f"a step of {step_ms:.1f} ms with the server, against without": (
            f"{in_percent(server)} | ≤ {STEP_GOAL:.1%}: {met(is_free)}"
        ),
        "5 s without a step or a question, with the server": f"{recorded['idle'][1]:.1f} ms",
        "the same without the server": f"{recorded['idle'][0]:.1f} ms",
        "the flight recorder, for each collective (torch has it on by default)": f"{each_us:.1f} us",
        "an answer with 2000 collectives, on the rank that is asked": f"{inside['answer_ms']:.0f} ms",
    }
    machine = f"{os.cpu_count()} cores, no GPU; Python {platform.python_version()}, gloo"
    load = f"other work on it: load average {os.getloadavg()[0]:.1f}"
    shown = [
        f"| {name} | {value} |" + ("" if "goal" in name or "≤" in value else "  |") for name, value in rows.items()
    ]
    head = ["# The probe of the ranks", "", "| what | CPU time | goal |", "| --- | --- | --- |"]
    return [*head, *shown, "", f"{machine}; {rounds} rounds; {time.strftime('%Y-%m-%d')}; {load}."]


def met(is_met: bool) -> str:
    """Return how a goal is reported."""
    return "met" if is_met else "missed"


def in_percent(values: Sequence[float]) -> str:
    """Return the median and the quartiles of ratios."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:+.2%} ({low:+.2%} to {high:+.2%})"


def interpreter_ms(env: dict[str, str]) -> float:
    """Return the CPU time of an interpreter that does nothing, in ms."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    base = {"PATH": os.environ["PATH"], **ENVIRONMENT, **env}
    subprocess.run([sys.executable, "-c", "pass"], env=base, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def run(what: str, env: dict[str, str], rounds: int) -> dict[str, Any]:
    """Measure in a process of its own, which is a rank with a probe."""
    argv = [sys.executable, __file__, "--inside", what, "--rounds", str(rounds)]
    done = subprocess.run(argv, env={**os.environ, **ENVIRONMENT, **env}, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- in a rank


def cpu_ms(step: Callable[[], object], count: int) -> float:
    """Return the CPU time of a step, in ms."""
    begun = time.process_time()
    for _ in range(count):
        step()
    return 1000 * (time.process_time() - begun) / count


def measure_start() -> dict[str, float]:
    """Return what the probe costs in an interpreter that imports torch."""
    sitecustomize: Any = sys.modules["sitecustomize"]  # the probe
    finder = next(each for each in sys.meta_path if isinstance(each, sitecustomize.AfterImport))
    call_ms = cpu_ms(lambda: finder.find_spec("json"), 10000)
    spent = [0.0]
    start = sitecustomize.start

    def timed() -> None:
        spent[0] = cpu_ms(start, 1)

    sitecustomize.start = timed
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    for _ in range(2000):
        dist.all_reduce(torch.ones(1))
    native = sys.modules["torch._C._distributed_c10d"]
    answer_ms = cpu_ms(lambda: native._dump_fr_trace_json(True, False), 5)
    return {"hook_ms": call_ms * len(sys.modules), "server_ms": spent[0], "answer_ms": answer_ms}


def measure_step(rounds: int) -> dict[str, list[float]]:
    """Return CPU times of steps with and without the server, and of a collective, in ms."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    layers = [torch.nn.Linear(256, 256) for _ in range(8)]
    model = DistributedDataParallel(torch.nn.Sequential(*layers))
    batch = torch.ones(64, 256)

    def step() -> None:
        model.zero_grad()
        model(batch).sum().backward()

    found: dict[str, list[float]] = {"bare": [], "served": [], "reduce": []}
    cpu_ms(step, 50)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for name in ("bare", "served", "served", "bare"):  # what drifts affects both alike
                serve(name == "served", f"{folder}/{number}")
                cpu_ms(step, 2)
                found[name].append(cpu_ms(step, 15))
            found["reduce"].append(cpu_ms(lambda: dist.all_reduce(torch.ones(1)), 200))
        for is_served in (False, True):
            serve(is_served, f"{folder}/idle")
            found["idle"] = [*found.get("idle", []), cpu_ms(lambda: time.sleep(5.0), 1)]
    return found


def serve(wanted: bool, path: str) -> None:
    """Start the server of this rank, or end it."""
    sitecustomize: Any = sys.modules["sitecustomize"]
    native: Any = sys.modules[sitecustomize.NATIVE]
    if wanted and not sitecustomize._kept:
        sitecustomize._kept.append(native._WorkerServer(path))
    elif not wanted and sitecustomize._kept:
        sitecustomize._kept.pop().shutdown()


if __name__ == "__main__":
    main()
