#!/usr/bin/env python
"""Measure train_llm.py: `inv bench-train`. Prints tables with the goals, and writes them into bench/results/.

Speed: three loops take turns in the same processes, a few steps each, so that other load on the machine affects
them equally: train_llm.py's, a bare loop (a batch already in memory, no logging, no checkpoints) and that of
transformers.Trainer. All have the same model, optimizer, gradient clipping, batch, sequence, dtype and threads (one per
process). Start and memory: separate processes, in turns. Every figure is a median; a ratio of speeds is the median
of the ratios of neighbouring turns, with its quartiles in brackets, which show how busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainingArguments

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import train_llm  # noqa: E402 (lies at the top of the repository, outside any package)

RESULTS = ROOT / "bench" / "results"
SHAPES = {  # of the models to measure: layers, width, heads, positions, vocabulary; sequences per rank
    "gpt2-mini": ((4, 256, 4, 256, 1024), 4),
    "gpt2-124m": ((12, 768, 12, 1024, 50257), 32),
}
TINY_BATCH = 8
BASELINE = """
import torch, torch.distributed
from transformers import AutoModelForCausalLM, GPT2Config
AutoModelForCausalLM.from_config(
    GPT2Config(vocab_size=1024, n_positions=128, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
)
import time; print(time.time())
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; --role and the options after it are for the processes that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=int, default=24, help="turns of each loop (default 24)")
    add("--segment-s", type=float, default=0.5, help="seconds in a loop's turn, two steps at least (default 0.5)")
    add("--only", nargs="+", choices=["speed", "start", "memory", "checkpoint"], help="tables to make (default: all)")
    add("--role", choices=["speed", "memory", "save"], help=argparse.SUPPRESS)
    add("--loop", choices=["train_llm.py", "bare loop"], help=argparse.SUPPRESS)
    add("--compile", action="store_true", help=argparse.SUPPRESS)
    add("--model", default=train_llm.TINY_GPT2, help=argparse.SUPPRESS)
    add("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# --- In the measured processes ---------------------------------------------------------------------------------------


def training_arguments(options: argparse.Namespace, *more: str) -> argparse.Namespace:
    """Return train_llm.py's arguments for a measurement: no end, no validation, no checkpoints."""
    batch = SHAPES[Path(options.model).name][1] if options.model != train_llm.TINY_GPT2 else TINY_BATCH
    argv = ["--model-name", options.model, "--batch-size", str(batch), "--max-steps", "1000000", "--eval-freq", "0",
            "--ckpt-freq", "0", "--dataset-cache-root", str(options.work)]  # fmt: skip
    return train_llm.parse_arguments([*argv, *(["--compile"] if options.compile else []), *more])


def own_loop(trainer: train_llm.Trainer) -> Callable[[], None]:
    """Return one step of train_llm.py's loop."""
    batches = trainer.batches()
    return lambda: trainer.advance(batches)


def bare_loop(trainer: train_llm.Trainer, alone: bool = False) -> Callable[[], None]:
    """Return a step on a copy of the model (`alone`: on the model itself), with one batch already on the device."""
    args, device = trainer.args, trainer.device
    model = trainer.model if alone else train_llm.build_model(args, trainer.corpus.vocabulary).to(device)
    optimizer = train_llm.build_optimizer(model, args)
    loss: Any = train_llm.NextTokenLoss(model)
    loss = torch.compile(loss) if args.compile else loss
    if trainer.process.world_size > 1:
        loss = torch.nn.parallel.DistributedDataParallel(loss, gradient_as_bucket_view=True)
    batch = trainer.corpus.read(np.arange(args.batch_size)).to(device)

    def step() -> None:
        with trainer.autocast():
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def synchronize() -> None:
    """Wait for the device and the other ranks."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    dist.barrier()


def milliseconds(step: Callable[[], None], steps: int) -> float:
    """Return the time of one step, the mean over `steps`."""
    synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return 1000 * (time.perf_counter() - began) / steps


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """A corpus as a data set for transformers.Trainer."""

    def __init__(self, corpus: train_llm.Corpus) -> None:
        self.corpus = corpus

    def __len__(self) -> int:
        return self.corpus.training

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.corpus.read(np.array([index]))[0, :-1]
        return {"input_ids": row, "labels": row}


class TakeTurns(TrainerCallback):
    """Record the milliseconds per step after every `steps` steps of transformers.Trainer, then run the other loops."""

    def __init__(self, steps: int, others: Callable[[], None]) -> None:
        self.steps, self.others, self.began = steps, others, 0.0
        self.times: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, control, kwargs  # transformers passes them by name
        if state.global_step % self.steps == 0:
            synchronize()
            self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, control, kwargs  # transformers passes them by name
        if state.global_step % self.steps == 0:
            synchronize()
            self.times.append(1000 * (time.perf_counter() - self.began) / self.steps)
            self.others()


def train_with_theirs(trainer: train_llm.Trainer, turns: TakeTurns, rounds: int) -> None:
    """Train with transformers.Trainer, configured like train_llm.py and for speed."""
    args, gpu = trainer.args, torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "per_device_train_batch_size": args.batch_size, "learning_rate": args.lr, "lr_scheduler_type": "cosine",
            "optim": "adamw_torch_fused", "weight_decay": args.weight_decay, "max_grad_norm": args.grad_clip,
            "logging_steps": args.log_freq, "bf16": gpu, "torch_compile": args.compile, "use_cpu": not gpu,
            "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "ddp_find_unused_parameters": False,
            "dataloader_pin_memory": gpu,
        }  # fmt: skip
        theirs = TrainingArguments(folder, max_steps=turns.steps * rounds, **options)
        model = train_llm.build_model(args, trainer.corpus.vocabulary)
        Trainer(model=model, args=theirs, train_dataset=Rows(trainer.corpus), callbacks=[turns]).train()


def measure_speed(options: argparse.Namespace, trainer: train_llm.Trainer) -> dict[str, Any]:
    """Let the three loops take turns; return the milliseconds per step in each turn of each loop."""
    own, bare = own_loop(trainer), bare_loop(trainer)
    for step in (own, bare):
        milliseconds(step, 5)  # compile, allocate, fill caches
    agreed = torch.tensor([milliseconds(bare, 3)])
    dist.broadcast(agreed, 0)
    steps = max(2, int(1000 * options.segment_s / agreed.item()))
    times: dict[str, list[float]] = {"train_llm.py": [], "bare loop": []}

    order = [("train_llm.py", own), ("bare loop", bare)]

    def others() -> None:
        for name, step in order:
            times[name].append(milliseconds(step, steps))
        order.reverse()  # so that no loop always follows the same one

    turns = TakeTurns(steps, others)
    train_with_theirs(trainer, turns, options.rounds + 1)
    times["transformers.Trainer"] = turns.times
    tokens = trainer.batching.global_size * trainer.corpus.seq_length
    flops = train_llm.flops_per_token(trainer.model, trainer.corpus.seq_length)
    return {"times": {name: turns[1:] for name, turns in times.items()}, "tokens": tokens, "flops": flops}


def measure_memory(options: argparse.Namespace, trainer: train_llm.Trainer) -> dict[str, Any]:
    """Return the peak memory in GB of a process that runs 20 steps of one loop only."""
    step = own_loop(trainer) if options.loop == "train_llm.py" else bare_loop(trainer, alone=True)
    for _ in range(20):
        step()
    return {"gb": train_llm.memory_gb(trainer.device)}


def measure_save(options: argparse.Namespace, trainer: train_llm.Trainer) -> dict[str, Any]:
    """Return milliseconds of steps that save (every tenth), of those right after, and of the others."""
    step = own_loop(trainer)
    times = [milliseconds(step, 1) for _ in range(10 * (options.rounds + 1))][10:]
    return {"save": times[9::10], "after": times[10::10], "other": [t for i, t in enumerate(times) if 2 <= i % 10 < 9]}


def measure(options: argparse.Namespace) -> None:
    """Run as one of the measured processes; rank 0 prints its results as the last line."""
    process = train_llm.detect_rank(os.environ)
    device = train_llm.connect(process, 600)
    saving = ["--experiment-name", "x", "--save-dir", str(options.work), "--ckpt-freq", "10"]
    more = saving if options.role == "save" else []
    trainer = train_llm.Trainer(training_arguments(options, *more), process, device)
    found = {"speed": measure_speed, "memory": measure_memory, "save": measure_save}[options.role](options, trainer)
    if process.is_main:
        print(json.dumps(found))


# --- In the process that starts them ---------------------------------------------------------------------------------


def measured(work: Path, processes: int, *options: str) -> dict[str, Any]:
    """Start this file under torchrun in a role; return the results of rank 0."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launcher = torchrun if processes > 1 else []
    argv = [sys.executable, *launcher, __file__, "--work", str(work), *options]
    done = subprocess.run(argv, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def environment() -> dict[str, str]:
    """Return the environment of a measured process: one thread, as under torchrun."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}


def write_model(work: Path, name: str) -> str:
    """Write a model folder of SHAPES with the embedded tokenizer; return its path."""
    from transformers import GPT2Config

    layers, width, heads, positions, vocabulary = SHAPES[name][0]
    folder = work / name
    shape: dict[str, Any] = {
        "n_layer": layers,
        "n_embd": width,
        "n_head": heads,
        "n_positions": positions,
        "vocab_size": vocabulary,
    }
    no_dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    GPT2Config(**shape, **no_dropout, bos_token_id=0, eos_token_id=0).save_pretrained(folder)
    train_llm.load_tokenizer(train_llm.parse_arguments(["--dataset-cache-root", str(work)])).save_pretrained(folder)
    return str(folder)


def first_step_s(work: Path, cache: Path) -> float:
    """Return seconds from the start of a process to its first optimizer step."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        argv = [sys.executable, str(ROOT / "train_llm.py"), "--max-steps", "1", "--log-freq", "1", "--ckpt-freq", "0",
                "--experiment-name", "x", "--save-dir", folder, "--dataset-cache-root", str(cache)]  # fmt: skip
        began = time.time()
        subprocess.run(argv, env=environment(), stdout=subprocess.DEVNULL, check=True)
        line = (Path(folder) / "x" / "log.jsonl").read_text().splitlines()[0]
        return float(json.loads(line)["time"]) - began


def baseline_s() -> float:
    """Return seconds from the start of a process until it has made the same imports and built the same model."""
    began = time.time()
    argv = [sys.executable, "-c", BASELINE]
    done = subprocess.run(argv, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout) - began


def start_rows(work: Path, rounds: int) -> Iterator[list[str]]:
    """Yield the rows of the start table."""
    cold, warm, base = [], [], []
    for turn in range(rounds):
        cold.append(first_step_s(work, work / f"cold-{turn}"))
        warm.append(first_step_s(work, work / "cold-0"))
        base.append(baseline_s())
    middle = statistics.median
    yield ["imports + model building", f"{middle(base):.2f} s", "1", ""]
    yield ["first step, cache warm", f"{middle(warm):.2f} s", *verdict(middle(warm) / middle(base), "≤", 1.2)]
    yield ["first step, cache cold", f"{middle(cold):.2f} s", f"{middle(cold) / middle(base):.2f}", "no goal"]


def verdict(ratio: float, relation: str, goal: float) -> list[str]:
    """Return a ratio, and its goal with `met` or `missed`."""
    met = ratio <= goal if relation == "≤" else ratio >= goal
    return [f"{ratio:.3f}", f"{relation} {goal}: {'met' if met else 'missed'}"]


def speed_rows(name: str, processes: int, found: dict[str, Any], peak: float | None) -> Iterator[list[str]]:
    """Yield the rows of one model and number of processes: tokens/s of each loop, and train_llm.py's ratio to it."""
    times = found["times"]
    for loop, goal in (("train_llm.py", None), ("bare loop", 0.98), ("transformers.Trainer", 1.0)):
        speed = 1000 * found["tokens"] / statistics.median(times[loop])
        ratios = [a / b for a, b in zip(times[loop], times["train_llm.py"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        words = ["", ""] if goal is None else verdict(middle, "≥", goal)
        words[0] += f" ({low:.2f}–{high:.2f})" if goal else ""
        mfu = f", MFU {speed * found['flops'] / (peak * processes):.1%}" if peak else ""
        yield [name, str(processes), loop, f"{speed:.0f} tokens/s{mfu}", *words]


def matmul_peak() -> float:
    """Return the FLOP/s of a large bf16 matrix product on the GPU, the best of ten."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    best = math.inf
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            a @ a
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - began) / 10)
    return 2 * 8192**3 / best


def table(head: list[str], rows: Iterator[list[str]] | list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def machine() -> str:
    """Return the machine's name and the relevant versions."""
    import transformers

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    gpu = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    busy = f"other work on it: load average {os.getloadavg()[0]:.1f}"
    return f"{os.cpu_count()} cores of {cpu}, {gpu}; {versions}; {time.strftime('%Y-%m-%d')}; {busy}"


def speed_table(work: Path, options: argparse.Namespace) -> str:
    """Return the table of speeds: on the CPU with 1 and 2 processes, on a GPU with and without compile."""
    how = ("--role", "speed", "--rounds", str(options.rounds), "--segment-s", str(options.segment_s))
    rows: list[list[str]] = []
    if torch.cuda.is_available():
        model, peak = write_model(work, "gpt2-124m"), matmul_peak()
        for flag in ((), ("--compile",)):
            found = measured(work, 1, "--model", model, *how, *flag)
            rows += speed_rows("gpt2-124m" + " compiled" * bool(flag), 1, found, peak)
        rows.append(["", "", "bf16 matrix product", f"{peak / 1e12:.0f} TFLOP/s", "", "MFU on an H200 ≥ 50 %"])
    else:
        for model in models_of(work):
            for processes in (1, 2):
                found = measured(work, processes, "--model", model, *how)
                rows += speed_rows(Path(model).name, processes, found, None)
        rows.append(["gpt2-124m", "", "on a GPU", "not measured: no GPU at hand", "", "MFU on an H200 ≥ 50 %"])
    return table(["model", "processes", "loop", "median", "train_llm.py is x times", "goal"], rows)


def models_of(work: Path) -> list[str]:
    """Return the models to measure on this machine."""
    if torch.cuda.is_available():
        return [write_model(work, "gpt2-124m")]
    return [train_llm.TINY_GPT2, write_model(work, "gpt2-mini")]


def start_table(work: Path, _: argparse.Namespace) -> str:
    """Return the table of times to the first step."""
    return table(["from the start of the process to", "median", "ratio", "goal"], start_rows(work, 5))


def memory_table(work: Path, _: argparse.Namespace) -> str:
    """Return the table of peak memory per rank."""
    return table(["model", "train_llm.py", "bare loop", "ratio", "goal"], memory_rows(work, models_of(work)))


def checkpoint_table(work: Path, _: argparse.Namespace) -> str:
    """Return the table of checkpoint costs."""
    costs = ["cost in step times", "of all steps, if every 100th saves", "goal"]
    head = ["model", "step", "step that saves", "step after it", *costs]
    return table(head, save_rows(work, models_of(work)))


TABLES = {
    "speed": ("Speed", speed_table),
    "start": ("Start", start_table),
    "memory": ("Peak memory of a rank", memory_table),
    "checkpoint": ("The cost of a checkpoint", checkpoint_table),
}


def memory_rows(work: Path, models: list[str]) -> Iterator[list[str]]:
    """Yield peak memory per model, three processes of each loop in turns."""
    for model in models:
        gb: dict[str, list[float]] = {"train_llm.py": [], "bare loop": []}
        for _ in range(3):
            for loop, values in gb.items():
                values.append(measured(work, 1, "--role", "memory", "--loop", loop, "--model", model)["gb"])
        own, bare = (statistics.median(values) for values in gb.values())
        yield [Path(model).name, f"{own:.3f} GB", f"{bare:.3f} GB", *verdict(own / bare, "≤", 1.1)]


def save_rows(work: Path, models: list[str]) -> Iterator[list[str]]:
    """Yield the cost of a checkpoint for the step that takes it and the next one."""
    for model in models:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            found = measured(Path(folder), 1, "--role", "save", "--model", model, "--rounds", "10")
        step, save, after = (statistics.median(found[name]) for name in ("other", "save", "after"))
        words = [f"{value:.1f} ms" for value in (step, save, after)]
        cost = (save - step) / step
        met = "met" if cost <= 2 else "missed"
        yield [Path(model).name, *words, f"{cost:.2f}", f"{cost:.2f} %", f"≤ 2 %: {met}"]


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write: one file in bench/results/ per table, so that each can be measured again."""
    options = parse_arguments(argv)
    if options.role:
        measure(options)
        return
    device = torch.cuda.get_device_name().lower().replace(" ", "-") if torch.cuda.is_available() else "cpu"
    for name in options.only or TABLES:
        title, make = TABLES[name]
        with tempfile.TemporaryDirectory() as work:
            text = f"# train_llm.py: {title}\n\n{make(Path(work), options)}\n{machine()}.\n"
        print(text, flush=True)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"train-{name}-{device}.md").write_text(text)


if __name__ == "__main__":
    main()
