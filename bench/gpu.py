#!/usr/bin/env python
"""Measure training on a GPU, and see real GPU faults: `inv bench-gpu`. Needs under 8 minutes on one GPU.

    inv bench-gpu                        # on a machine with an NVIDIA GPU: writes bench/results/gpu-NAME.md
    inv bench-gpu --options "--tiny"     # the same steps with small models, on the CPU: a rehearsal; writes nothing

Three parts, each of real jobs of `fab launch-per-node` on localhost:

- `train`: GPT-2 of 124 M and of 350 M parameters, 1024 positions, bf16, torch.compile, fused AdamW, attention by SDPA.
  The loop of train_llm.py and a bare loop (one batch already on the device, no logging) take turns in one process.
  MFU is tokens/s x FLOPs per token (PaLM, appendix B) / the card's dense bf16 peak of its data sheet.
- `share`: the same loop started by `fab launch-per-node` and by `python`, in turns; and the CPU time of the supervisor.
- `faults`: what `fab top`, `fab doctor` and `fab why` report of a GPU: its use, CUDA out of memory, an illegal address,
  and memory that is free again after a rank is killed.

Results are kept after each step in a JSON Lines file, so that a run that is cut off loses nothing; --render makes the
page of what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
import train  # noqa: E402 (lies beside this file, outside any package)

import train_llm  # noqa: E402 (lies at the top of the repository, outside any package)

RESULTS = ROOT / "bench" / "results"
FAB = (sys.executable, "-m", "fabric")
LIMIT_S = 300  # of a job


@dataclass(frozen=True)
class Model:
    """A GPT-2 to measure.

    Parameters
    ----------
    name : str
        Of its row.
    shape : tuple of int
        Layers, width, heads, positions, vocabulary.
    batch : int
        Sequences in a step.
    goal : float
        Least MFU.
    """

    name: str
    shape: tuple[int, int, int, int, int]
    batch: int
    goal: float


MODELS = (
    Model("gpt2-124m", (12, 768, 12, 1024, 50304), 32, 0.40),
    Model("gpt2-350m", (24, 1024, 16, 1024, 50304), 16, 0.50),
)
TINY_MODELS = (Model("gpt2-tiny", (2, 64, 2, 128, 1024), 8, 0.0), Model("gpt2-small", (2, 128, 2, 128, 1024), 8, 0.0))


@dataclass(frozen=True)
class Scale:
    """How much to measure: on a GPU, or in a rehearsal.

    Parameters
    ----------
    models : tuple of Model
        Models of part `train`; the first one is also that of part `share`.
    turns, turn_s : int, float
        Turns of each loop, and seconds of a turn.
    compile : bool
        Whether to compile the model.
    held_gb : float
        Memory that the killed rank held.
    """

    models: tuple[Model, ...] = MODELS
    turns: int = 8
    turn_s: float = 1.5
    compile: bool = True
    held_gb: float = 20.0


TINY = Scale(TINY_MODELS, turns=3, turn_s=0.2, compile=False, held_gb=0.1)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; --role and the options after it are for the processes that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    add("--tiny", action="store_true", help="small models and few steps: a rehearsal for a machine without a GPU")
    add("--results", type=Path, help="where results are kept (bench/results; with --tiny a temporary folder)")
    add("--render", action="store_true", help="make the page of what is there; measure nothing")
    add("--role", choices=ROLES, help=argparse.SUPPRESS)
    add("--index", type=int, default=0, help=argparse.SUPPRESS)
    add("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# --- In the measured processes ---------------------------------------------------------------------------------------


def make_trainer(model: Model, work: Path, compiled: bool) -> train_llm.Trainer:
    """Return train_llm.py's trainer for a model, with no end, no validation and no checkpoints."""
    train.SHAPES[model.name] = (model.shape, model.batch)
    argv = ["--model-name", train.write_model(work, model.name), "--batch-size", str(model.batch)]
    argv += ["--max-steps", "1000000", "--eval-freq", "0", "--ckpt-freq", "0", "--dataset-cache-root", str(work)]
    arguments = train_llm.parse_arguments([*argv, *(["--compile"] if compiled else [])])
    process = train_llm.detect_rank(os.environ)
    return train_llm.Trainer(arguments, process, train_llm.connect(process, 600))


def steps_in(step: Callable[[], None], seconds: float) -> int:
    """Return how many steps take about `seconds`, two at least, after the step is compiled and its caches are full."""
    train.milliseconds(step, 5)
    return max(2, int(1000 * seconds / train.milliseconds(step, 3)))


def run_train(options: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """Let train_llm.py's loop and the bare loop take turns."""
    model = scale.models[options.index]
    began = time.monotonic()
    trainer = make_trainer(model, options.work, scale.compile)
    loops = {"train_llm.py": train.own_loop(trainer), "bare loop": train.bare_loop(trainer)}
    counts = {name: steps_in(step, scale.turn_s) for name, step in loops.items()}
    ready_s = time.monotonic() - began
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(scale.turns):
        for name in sorted(loops, reverse=turn % 2 == 1):
            times[name].append(train.milliseconds(loops[name], counts[name]))
    return {**describe(trainer), "model": model.name, "times": times, "ready_s": ready_s}


def run_share(options: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """Run train_llm.py's loop alone, not compiled."""
    trainer = make_trainer(scale.models[0], options.work, compiled=False)
    step = train.own_loop(trainer)
    count = steps_in(step, scale.turn_s)
    before, began = _supervisor_cpu_s(), time.monotonic()
    times = [train.milliseconds(step, count) for _ in range(scale.turns)]
    cost = {"supervisor_cpu_s": _supervisor_cpu_s() - before, "wall_s": time.monotonic() - began}
    return {**describe(trainer), "times": times, **cost}


def _supervisor_cpu_s() -> float:
    """Return the CPU seconds so far of the parent's parent: under `fab launch-per-node`, torchrun's supervisor."""
    parent = int(_stat(os.getppid())[1])
    user, system = _stat(parent)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the process's name: state, parent, and so on (proc_pid_stat(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def describe(trainer: train_llm.Trainer) -> dict[str, Any]:
    """Return what speed and MFU are computed from."""
    return {
        "tokens": trainer.batching.global_size * trainer.corpus.seq_length,
        "flops_per_token": train_llm.flops_per_token(trainer.model, trainer.corpus.seq_length),
        "peak_flops": train_llm.peak_flops(trainer.device),
        "memory_gb": train_llm.memory_gb(trainer.device),
    }


def run_out_of_memory(options: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """Allocate until the GPU has no memory left."""
    del options, scale
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kept = [torch.empty(1 << 32, dtype=torch.uint8, device=device) for _ in range(1 << 20 if device == "cuda" else 1)]
    raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate 4.00 GiB after {len(kept)} blocks.")


def run_illegal_address(options: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """Write to an address that is not mapped, from a kernel."""
    del options, scale
    if not torch.cuda.is_available():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    source = 'extern "C" __global__ void write_nowhere(int *unused) { *(volatile int *)16 = 1; }'
    kernel = torch.cuda._compile_kernel(source, "write_nowhere")
    kernel(grid=(1, 1, 1), block=(1, 1, 1), args=[torch.zeros(1, dtype=torch.int32, device="cuda")])
    torch.cuda.synchronize()
    raise AssertionError("the kernel wrote to address 16")


def run_hold(options: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """Hold memory and compute until the process is killed."""
    del options
    device = "cuda" if torch.cuda.is_available() else "cpu"
    held = torch.zeros(int(scale.held_gb * 1e9), dtype=torch.uint8, device=device)
    size = 8192 if device == "cuda" else 256
    matrix = torch.randn(size, size, device=device)
    print(f"holds {held.numel() / 1e9:.1f} GB", flush=True)
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        (matrix @ matrix).sum().item()
    return {}


ROLES: dict[str, Callable[[argparse.Namespace, Scale], dict[str, Any]]] = {
    "train": run_train,
    "share": run_share,
    "out-of-memory": run_out_of_memory,
    "illegal-address": run_illegal_address,
    "hold": run_hold,
}


# --- In the process that starts them ---------------------------------------------------------------------------------


class Bench:
    """The jobs of a measurement and its results.

    Parameters
    ----------
    work : Path
        Temporary folder: a project with one host, localhost, and the files that jobs write.
    tiny : bool
        Whether this is a rehearsal.
    """

    def __init__(self, work: Path, tiny: bool) -> None:
        self.work, self.tiny, self.scale = work, tiny, TINY if tiny else Scale()
        (work / "hosts").write_text("localhost gpus=1\n" if torch.cuda.is_available() else "localhost slots=1\n")
        shutil.copy(ROOT / "fabfile.py", work / "fabfile.py")

    def fab(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a fab command in the project; its failure is for the caller to judge."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*FAB, *words], cwd=self.work, env=env, text=True, capture_output=True, timeout=LIMIT_S, check=False
        )

    def ask(self, *words: str) -> Any:
        """Return the JSON of a fab command."""
        done = self.fab(*words, "--json")
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise SystemExit(f"fab {' '.join(words)} printed no JSON: {done.stdout}{done.stderr}") from None

    def script(self, role: str, index: int = 0) -> list[str]:
        """Return this file's command line in a role."""
        words = [__file__, "--role", role, "--index", str(index), "--work", str(self.work)]
        return [*words, *(["--tiny"] if self.tiny else [])]

    def launch(self, name: str, role: str, index: int = 0, follow: bool = True) -> subprocess.CompletedProcess[str]:
        """Launch this file in a role with `fab launch-per-node`."""
        flags = ["--name", name, "--python", sys.executable, *(["--follow"] if follow else [])]
        return self.fab("launch-per-node", *flags, "--", *self.script(role, index))

    def result(self, done: subprocess.CompletedProcess[str], role: str) -> dict[str, Any]:
        """Return what the rank wrote; stop here if its job failed."""
        if done.returncode:
            raise SystemExit(f"the job failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
        found: dict[str, Any] = json.loads((self.work / f"{role}.json").read_text())
        return found


def measure_train(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the figures of each model."""
    for index, model in enumerate(bench.scale.models):
        done = bench.launch(model.name, "train", index)
        yield bench.result(done, "train")


def measure_share(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the figures of the loop started by fab and by python, in turns."""
    pairs: dict[str, list[float]] = {"fab": [], "python": []}
    supervisor_s = wall_s = 0.0
    for turn in range(2):
        found = bench.result(bench.launch(f"share-{turn}", "share"), "share")
        pairs["fab"] += found["times"]
        supervisor_s, wall_s = supervisor_s + found["supervisor_cpu_s"], wall_s + found["wall_s"]
        argv, env = [sys.executable, *bench.script("share")], train.environment()
        alone = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        pairs["python"] += bench.result(alone, "share")["times"]
    yield {"times": pairs, "supervisor_cpu_s": supervisor_s, "wall_s": wall_s}


def measure_faults(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield what fab reports of each fault, and of the GPU's use."""
    yield {"fault": "a busy GPU", **_see_busy_gpu(bench)}
    for role, expected in (("out-of-memory", "device-memory"), ("illegal-address", "device-assert")):
        bench.launch(role, role)
        cause = bench.ask("why", role)["cause"]
        yield {"fault": role, "reported": cause["words"], "cause": cause["name"], "expected": expected}


def _see_busy_gpu(bench: Bench) -> dict[str, Any]:
    """Return what `fab top` and `fab doctor` report while a rank holds memory, and how it ends when killed."""
    launched = bench.launch("hold", "hold", follow=False)
    if launched.returncode:
        raise SystemExit(f"the job did not start:\n{launched.stdout}{launched.stderr}")
    _wait_for(lambda: "holds" in bench.fab("logs", "hold").stdout)
    seen = bench.ask("top", "--once")
    _kill_rank(bench)
    _wait_for(lambda: bench.ask("status", "hold")["state"] == "failed")
    free = _used_memory_mb()
    return {
        "top": seen["nodes"][0].get("gpus", []),
        "reported": bench.ask("why", "hold")["cause"]["words"],
        "memory_used_after_mb": free,
    }


def _kill_rank(bench: Bench) -> None:
    """Send SIGKILL to the one rank of job `hold`."""
    ranks = [rank for node in bench.ask("status", "hold")["nodes"] for rank in node["ranks"]]
    os.kill(int(ranks[0]["pid"]), signal.SIGKILL)


def _used_memory_mb() -> list[int]:
    """Return the used memory of each GPU in MB; empty without nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return []
    argv = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return [int(line) for line in subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()]


def _wait_for(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_true():
        if time.monotonic() > end:
            raise SystemExit("waited 60 s for a state of job hold that did not come: see fab status, fab logs")
        time.sleep(0.5)


PARTS: dict[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
    "train": measure_train,
    "share": measure_share,
    "faults": measure_faults,
}


# --- The page --------------------------------------------------------------------------------------------------------


def train_rows(found: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield a row for each model and loop: speed, MFU, memory, and train_llm.py's ratio to the bare loop."""
    goals = {model.name: model.goal for model in MODELS}
    for each in found:
        times = each["times"]
        ratios = [bare / own for own, bare in zip(times["train_llm.py"], times["bare loop"], strict=True)]
        for loop in times:
            own = loop == "train_llm.py"
            speed = 1000 * each["tokens"] / statistics.median(times[loop])
            mfu = speed * each["flops_per_token"] / each["peak_flops"] if each["peak_flops"] else None
            judged = train.verdict(mfu, "≥", goals[each["model"]])[1] if own and mfu and each["model"] in goals else ""
            ratio = train.verdict(statistics.median(ratios), "≥", 0.98) if own else ["", ""]
            shown = f"{mfu:.1%}" if mfu else "no peak known"
            memory = f"{each['memory_gb']:.1f} GB" if own else ""
            yield [each["model"], loop, f"{speed:,.0f}", shown, judged, " ".join(ratio), memory]


def share_rows(found: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield the row of the launcher's share."""
    for each in found:
        fab, alone = (statistics.median(each["times"][name]) for name in ("fab", "python"))
        supervisor = f"{each['supervisor_cpu_s'] / each['wall_s']:.3%} of a core"
        yield [f"{alone:.2f} ms", f"{fab:.2f} ms", *train.verdict(fab / alone - 1, "≤", 0.002), supervisor]


def fault_rows(found: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield a row for each fault."""
    for each in found:
        right = "" if "expected" not in each else ("yes" if each["cause"] == each["expected"] else "no")
        more = f"`fab top`: {json.dumps(each['top'])}" if "top" in each else ""
        more += f"; used after it: {each['memory_used_after_mb']} MB" if more else ""
        yield [each["fault"], each["reported"], right, more]


HEADS: dict[str, tuple[str, list[str], Callable[[list[dict[str, Any]]], Iterator[list[str]]]]] = {
    "train": (
        "Training: bf16, compiled, fused AdamW, attention by SDPA",
        ["model", "loop", "tokens/s", "MFU", "goal", "ratio to the bare loop, goal", "memory"],
        train_rows,
    ),
    "share": (
        "The launcher's share: a step started by `fab launch-per-node` and by `python`",
        ["python", "fab", "more by", "goal", "supervisor"],
        share_rows,
    ),
    "faults": ("Faults", ["fault", "`fab why`", "right", "seen besides"], fault_rows),
}


def render(kept: list[dict[str, Any]]) -> str:
    """Return the page of all results."""
    text = "# Training on a GPU\n"
    for part, (title, head, rows) in HEADS.items():
        found = [each["found"] for each in kept if each["part"] == part]
        text += f"\n## {title}\n\n{train.table(head, rows(found))}" if found else ""
    peak = next((each["found"]["peak_flops"] for each in kept if each["found"].get("peak_flops")), None)
    stated = f"Dense bf16 peak: {peak / 1e12:.0f} TFLOP/s (data sheet). " if peak else ""
    return f"{text}\n{stated}{train.machine()}.\n"


def run_parts(options: argparse.Namespace, keep: Path) -> None:
    """Measure the chosen parts; keep each result at once."""
    for part in options.only:
        with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
            for found in PARTS[part](Bench(Path(folder), options.tiny)):
                with keep.open("a") as file:
                    file.write(json.dumps({"part": part, "found": found}) + "\n")
                print(f"{part}: {json.dumps(found)[:300]}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Measure, keep, print the page. Returns 2 if there is no GPU and this is no rehearsal."""
    options = parse_arguments(argv)
    if options.role:
        found = ROLES[options.role](options, TINY if options.tiny else Scale())
        (options.work / f"{options.role}.json").write_text(json.dumps(found))
        return 0
    if not torch.cuda.is_available() and not options.tiny and not options.render:
        print("bench-gpu needs a GPU that torch can use; --tiny rehearses its steps on the CPU", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        results = options.results or (Path(temporary) if options.tiny else RESULTS)
        device = torch.cuda.get_device_name().lower().replace(" ", "-") if torch.cuda.is_available() else "cpu"
        keep = results / f"gpu-{device}.jsonl"
        if not options.render:
            run_parts(options, keep)
        page = render([json.loads(line) for line in keep.read_text().splitlines()])
        print(page)
        keep.with_suffix(".md").write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
