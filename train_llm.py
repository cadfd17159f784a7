#!/usr/bin/env python
"""Train a causal language model with DistributedDataParallel, on one process or on thousands.

    python train_llm.py                                          # the embedded default: a tiny GPT-2, 20 s on a laptop
    torchrun --nproc-per-node 2 train_llm.py --max-steps 40      # the same on two processes
    torchrun ... train_llm.py --experiment-name gpt2 --model-name openai-community/gpt2 \
        --dataset-name Skylion007/openwebtext --batch-size 64 --compile

Works with any launcher that sets the rank of a process: torchrun, RANK and WORLD_SIZE in the environment, deepspeed,
mpirun, srun. The file reads from top to bottom:

    1 arguments · 2 rank and device · 3 data · 4 model and optimizer · 5 checkpoints · 6 logging · 7 the loop · 8 main

Three design rules:

- **Everything about step s is a function of (seed, s)**: which sequences it reads, in which order, its learning rate,
  its dropout masks. So a resumed run equals the uninterrupted one, on any number of ranks, and replays nothing.
- **Rank 0 reads and writes checkpoints and broadcasts them to the others.** No shared file system is needed.
- **The hot loop never waits for the device.** Losses stay on it until a log line, an evaluation or a checkpoint
  needs them.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import fcntl
import hashlib
import itertools
import json
import math
import os
import platform
import re
import resource
import shutil
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel

# transformers and datasets are imported where they are used: `--help` stays fast, and a warm start needs no `datasets`.
# mypy: allow-untyped-calls, no-warn-return-any
# (transformers and parts of torch have no types.)

PYDOC = "pydoc"  # embedded data set: the language reference in every CPython, 466 kB of English prose
TINY_GPT2 = "tiny-gpt2"  # embedded model: a GPT-2 of 0.2 M parameters with its own tokenizer
END_OF_TEXT = "<|endoftext|>"


class TrainError(Exception):
    """An error that the user can fix: printed as one line; the traceback goes to the rank's error file only."""


# ---------------------------------------------------------------------------------------------------------------------
# 1. Arguments
# ---------------------------------------------------------------------------------------------------------------------


def at_least(low: float, kind: type = int) -> Callable[[str], Any]:
    """Return an argparse type that accepts a `kind` not below `low`."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value < math.inf:
            raise argparse.ArgumentTypeError(f"expected a number of at least {low}, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Add the default to the help of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.const else super()._get_help_string(action)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line (default: sys.argv)."""
    about = "Train a causal language model with DistributedDataParallel."
    parser = argparse.ArgumentParser(description=about, formatter_class=HelpWithDefaults)
    add_model_and_data_arguments(parser.add_argument_group("what to train on what"))
    add_batch_arguments(parser.add_argument_group("how much"))
    add_optimizer_arguments(parser.add_argument_group("how"))
    add_output_arguments(parser.add_argument_group("what to keep and to show"))
    add_launch_arguments(parser.add_argument_group("the launch"))
    return parser.parse_args(argv)


def add_model_and_data_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--model-name", default=TINY_GPT2, help=f"'{TINY_GPT2}', a folder, or a name on the hub")
    add("--weights", choices=["scratch", "pretrained"], default="scratch", help="start from random or stored weights")
    add("--dataset-name", default=PYDOC,
        help=f"'{PYDOC}', a txt, jsonl, parquet or arrow file or a folder of them, or a name on the hub")  # fmt: skip
    add("--dataset-config", help="configuration of a hub data set, such as wikitext-103-raw-v1")
    add("--dataset-split", default="train", help="split of a hub data set")
    add("--text-column", default="text", help="column that holds the text")
    add("--dataset-cache-root", type=Path, default=Path(".cache"), help="folder for downloads, tokenizers and tokens")
    add("--eval-size", type=at_least(1), default=256, help="sequences held out for validation, 5%% of the data at most")


def add_batch_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--batch-size", type=at_least(1), default=8, help="sequences per rank that go through the model at once")
    add("--global-batch-size", type=at_least(1), help="sequences per optimizer step over all ranks, reached by "
        "accumulating gradients (default: the resumed checkpoint's, else batch size x ranks)")  # fmt: skip
    add("--seq-length", type=at_least(2), help="tokens per sequence (default: the model's longest, up to 1024)")
    add("--num-epochs", type=at_least(1), default=3, help="passes over the data")
    add("--max-steps", type=at_least(1), help="optimizer steps in all; overrides --num-epochs")


def add_optimizer_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--lr", type=at_least(0, float), default=1e-3, help="highest learning rate, reached after the warmup")
    add("--min-lr-ratio", type=at_least(0, float), default=0.1, help="last learning rate, as a part of --lr")
    add("--warmup-ratio", type=at_least(0, float), default=0.05, help="part of the steps in which the rate rises")
    add("--weight-decay", type=at_least(0, float), default=0.1, help="AdamW's decay of matrices and embeddings")
    add("--grad-clip", type=at_least(0, float), default=1.0, help="largest norm of the gradient; 0 leaves it as it is")
    add("--dtype", choices=["auto", "float32", "bfloat16"], default="auto",
        help="of matrix products, weights are float32; auto: bfloat16 on GPUs that have it")  # fmt: skip
    add("--compile", action="store_true", help="torch.compile the model: minutes at the start, faster steps")
    add("--seed", type=at_least(0), default=0, help="of weights, data order and dropout")


def add_output_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--experiment-name", help="folder in --save-dir to save to and to resume from; without it nothing is saved")
    add("--save-dir", type=Path, default=Path("runs"), help="folder of all experiments; only rank 0 needs it")
    add("--log-freq", type=at_least(1), default=10, help="steps between log lines")
    add("--eval-freq", type=at_least(0), default=500, help="steps between validations; 0: only at the end")
    add("--ckpt-freq", type=at_least(0), default=500, help="steps between checkpoints; 0: only at the end")
    add("--keep", type=at_least(1), default=2, help="checkpoints to keep, the newest ones")
    add("--tracker", choices=["none", "tensorboard", "wandb", "mlflow"], default="none", help="where scalars go, too")


def add_launch_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--local_rank", "--local-rank", type=at_least(0), help="given by deepspeed; wins over the environment")
    add("--timeout", type=at_least(1), default=600, help="seconds until a rank that waits for another one gives up")


# ---------------------------------------------------------------------------------------------------------------------
# 2. Rank and device: rank, local_rank, world_size
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DistributedRank:
    """Rank, local rank and world size of this process, and the launcher that set them."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    source: str = "no launcher: a single process"
    one_node: bool = True

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints, logs and saves for all."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"rank={self.rank} local_rank={self.local_rank} world_size={self.world_size} (from {self.source})"


# Launcher, the variable that identifies it, then its variables of rank, local rank, world size and local world size.
# The first match wins: torchrun may run under srun and mpirun under Slurm, and the innermost launcher is right. srun is
# identified by its step: a batch script has SLURM_PROCID too, but is not one of the tasks.
LAUNCHERS = (
    ("torchrun", "TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    ("RANK", "RANK", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPICH", "MPI_LOCALRANKID", "PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", ""),
)  # fmt: skip


def detect_rank(env: Mapping[str, str], local_rank: int | None = None, gpus: int = 0) -> DistributedRank:
    """Read this process's rank from the variables that its launcher set.

    Parameters
    ----------
    env : Mapping[str, str]
        The environment.
    local_rank : int, optional
        Value of ``--local_rank``; wins over the environment.
    gpus : int, default 0
        GPUs on this node: the last resort for the local rank, when only RANK and WORLD_SIZE are set.

    Raises
    ------
    TrainError
        Some of the launcher's variables are missing, or they contradict each other.
    """
    launcher = next((launcher for launcher in LAUNCHERS if launcher[1] in env), None)
    if launcher is None:
        return DistributedRank(local_rank=local_rank or 0)
    name, _, *names = launcher
    rank, size = (read_count(env, names[i], name) for i in (0, 2))
    if not 0 <= rank < size:
        raise TrainError(f"{name}: expected {names[0]} below {names[2]}, got {rank} of {size}")
    if local_rank is not None:
        name = f"{name} and --local_rank"
    elif names[1] in env:
        local_rank = read_count(env, names[1], name)
    else:
        local_rank = rank % gpus if gpus else rank
    return DistributedRank(rank, local_rank, size, name, one_node=env.get(names[3]) == str(size))


def read_count(env: Mapping[str, str], name: str, launcher: str) -> int:
    """Return the number in variable `name`, which `launcher` should have set."""
    if not re.fullmatch(r"\d+", env.get(name, "")):
        raise TrainError(f"{launcher}: expected a number in {name}, got {env.get(name)!r}")
    return int(env[name])


def master_address(env: Mapping[str, str], process: DistributedRank, parent: int) -> tuple[str, str]:
    """Return address and port of rank 0, also for launchers that do not set MASTER_ADDR or MASTER_PORT.

    All ranks must derive the same without communication: from Slurm's node list and job number, or on one node from the
    pid of the launcher (`parent`), which all ranks share and no other job has; else torch's usual port, 29500.

    Raises
    ------
    TrainError
        There are several nodes, and the first one is unknown.
    """
    address = "127.0.0.1" if process.one_node else first_host(env.get("SLURM_STEP_NODELIST", ""))
    if not (address := env.get("MASTER_ADDR", address)):
        raise TrainError(
            f"{process.source} does not set the address of rank 0: pass MASTER_ADDR (mpirun -x MASTER_ADDR=...)"
        )
    port = 29_500
    if process.source.startswith("srun"):
        port = port_for(16 * int(env.get("SLURM_JOB_ID", 0)) + int(env.get("SLURM_STEP_ID", 0)))
    elif process.one_node:
        port = port_for(parent)
    return address, env.get("MASTER_PORT", str(port))


def port_for(number: int) -> int:
    """Return a port for `number`, below the range that Linux uses for outgoing connections."""
    return 10_000 + number % 20_000


def first_host(nodelist: str) -> str:
    """Return the first name of a Slurm node list: ``a[07-09,12],b`` gives ``a07``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else ""


def connect(process: DistributedRank, timeout_s: float) -> torch.device:
    """Join the process group; return the device of this rank."""
    device = choose_device(process.local_rank)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    common: dict[str, Any] = {"rank": process.rank, "world_size": process.world_size}
    common["timeout"] = timedelta(seconds=timeout_s)
    if process.world_size == 1:  # needs no port
        dist.init_process_group(backend, store=dist.HashStore(), **common)  # type: ignore[attr-defined]
    else:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = master_address(os.environ, process, os.getppid())
        dist.init_process_group(backend, init_method="env://", **common)
    print_line(f"{process} on {socket.gethostname()}, {device} with {backend}")
    return device


def print_line(text: str) -> None:
    """Print a line with one write, so that ranks that share a pipe do not mix their lines."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def choose_device(local_rank: int) -> torch.device:
    """Return the GPU of this rank, or the CPU if there is no GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    index = 0 if count == 1 else local_rank  # srun and containers may show each rank its own GPU only
    if index >= count:
        raise TrainError(f"local_rank {local_rank} has no GPU: this node shows {count}; start {count} processes on it")
    device = torch.device("cuda", index)
    set_current_device(device)
    torch.set_float32_matmul_precision("high")
    return device


def set_current_device(device: torch.device) -> None:
    """Make `device` the current one of this thread."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


# ---------------------------------------------------------------------------------------------------------------------
# 3. Data: text -> one flat file of tokens -> sequences
# ---------------------------------------------------------------------------------------------------------------------


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Let one process create `folder` while all others that need it wait; return it.

    A file lock excludes the other ranks of the node, and other nodes if the file system shares locks; if it does not,
    the rename makes that harmless. The kernel releases the lock of a builder that dies, and the next one starts again.

    Parameters
    ----------
    folder : Path
        The folder that must exist, complete.
    build : Callable[[Path], None]
        Fills an empty folder.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        part = Path(f"{folder}.{socket.gethostname()}.part")
        if not folder.exists():
            shutil.rmtree(part, ignore_errors=True)  # left by a builder that was killed
            part.mkdir()
            build(part)
            try:
                part.rename(folder)
            except OSError:  # another node was faster
                if not folder.exists():
                    raise
    return folder


def load_tokenizer(args: argparse.Namespace) -> Any:
    """Return the tokenizer of ``--model-name``."""
    from transformers import AutoTokenizer

    name = args.model_name
    if name == TINY_GPT2:
        folder = args.dataset_cache_root / "tokenizers" / f"{TINY_GPT2}-{platform.python_version()}"
        name = str(build_once(folder, train_tokenizer))
    with library_errors("--model-name", name):
        return AutoTokenizer.from_pretrained(name)


def train_tokenizer(folder: Path) -> None:
    """Train the byte-level BPE of the embedded model, 1024 tokens, on the embedded data (0.3 s)."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(pydoc_texts(), vocab_size=1024, special_tokens=[END_OF_TEXT], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=END_OF_TEXT).save_pretrained(folder)


def pydoc_texts() -> list[str]:
    """Return the chapters of the embedded data set."""
    from pydoc_data import topics

    return list(topics.topics.values())


READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".arrow": "arrow"}


def local_files(name: str) -> list[Path]:
    """Return the files of one kind that `name` denotes, sorted; none if it is not a local path.

    Raises
    ------
    TrainError
        The path has no readable file, or files of several kinds.
    """
    path = Path(name).expanduser()
    if not path.exists():
        return []
    every = [path] if path.is_file() else path.rglob("*")
    about = ("dataset_info.json", "state.json")  # what save_to_disk writes beside its arrow files
    files = sorted(file for file in every if file.suffix in READERS and file.name not in about and file.is_file())
    kinds = sorted({READERS[file.suffix] for file in files})
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        raise TrainError(f"--dataset-name {name}: expected files of one kind ({', '.join(READERS)}), found {found}")
    return files


def read_texts(args: argparse.Namespace) -> Iterator[list[str]]:
    """Yield the documents of ``--dataset-name`` in batches, so that at most one batch is in memory."""
    if args.dataset_name == PYDOC:
        yield pydoc_texts()
        return
    files = [str(file) for file in local_files(args.dataset_name)]
    if files and files[0].endswith(".txt"):
        yield from read_text_files(files)
        return
    from datasets import load_dataset  # type: ignore[import-untyped]

    with library_errors("--dataset-name", args.dataset_name):
        if files:
            data = load_dataset(READERS[Path(files[0]).suffix], data_files=files, split="train", streaming=True)
        else:
            downloads = str(args.dataset_cache_root / "hub")
            data = load_dataset(args.dataset_name, args.dataset_config, split=args.dataset_split, cache_dir=downloads)
        for batch in data.iter(batch_size=1000):
            if args.text_column not in batch:
                raise TrainError(f"--text-column {args.text_column}: the data set has {', '.join(batch)}")
            yield batch[args.text_column]


def read_text_files(files: list[str], size: int = 1 << 20) -> Iterator[list[str]]:
    """Yield text files as documents of whole lines, of about `size` bytes (default 1 MiB) if a file is longer."""
    for file in files:
        with open(file, encoding="utf-8", errors="replace") as lines:
            while document := "".join(lines.readlines(size)):
                yield [document]


@contextlib.contextmanager
def library_errors(option: str, name: str) -> Iterator[None]:
    """Turn any exception of transformers or datasets about `name` into a one-line error."""
    try:
        yield
    except TrainError:
        raise
    except Exception as error:  # datasets' own errors have no other common base
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        where = "" if on_disk(name) else "not embedded, no local file or folder; the hub: "
        raise TrainError(f"{option} {name}: {where}{reason}") from error


def on_disk(name: str) -> bool:
    """Return whether a model or data set is available without the hub."""
    return name in (PYDOC, TINY_GPT2) or Path(name).expanduser().exists()


def avoid_waiting_for_the_hub(names: Iterable[str], env: Any = os.environ) -> None:
    """Use only the hub's local cache if its host does not resolve: its libraries would retry for 23 s per name.

    Must run before they are imported. With a proxy, the proxy resolves names, so this check is skipped.
    """
    if all(map(on_disk, names)) or any(key.lower() in ("https_proxy", "all_proxy") for key in env):
        return
    try:
        socket.getaddrinfo(env.get("HF_ENDPOINT", "https://huggingface.co").split("/")[2], 443)
    except (OSError, IndexError):
        env["HF_HUB_OFFLINE"] = "1"


@dataclass(frozen=True)
class Corpus:
    """A tokenised data set: one flat, memory-mapped array of tokens, documents divided by end-of-text.

    Sequence i is tokens [i * seq_length, (i + 1) * seq_length], one more than seq_length, because the target of
    each token is the next one. The last `held_out` sequences are for validation.
    """

    tokens: np.ndarray  # (count,) uint16 or uint32
    vocabulary: int
    digest: str
    seq_length: int = 0
    held_out: int = 0

    @property
    def total(self) -> int:
        """Sequences, held-out ones included."""
        return (len(self.tokens) - 1) // self.seq_length

    @property
    def training(self) -> int:
        """Sequences to train on."""
        return self.total - self.held_out

    def read(self, sequences: np.ndarray) -> Tensor:
        """Return sequences by number: int64, (len(sequences), seq_length + 1)."""
        starts = sequences * self.seq_length
        rows = [self.tokens[start : start + self.seq_length + 1] for start in starts.tolist()]
        return torch.from_numpy(np.stack(rows).astype(np.int64))


def open_corpus(args: argparse.Namespace) -> Corpus:
    """Tokenise ``--dataset-name`` for ``--model-name`` once per node, or open the result of an earlier run."""
    folder = args.dataset_cache_root / "tokens" / corpus_key(args)
    build_once(folder, lambda part: tokenise(args, part))
    meta = json.loads((folder / "meta.json").read_text())
    tokens = np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r")
    return Corpus(tokens, meta["vocabulary"], meta["sha256"])


def corpus_key(args: argparse.Namespace) -> str:
    """Return a name for the tokens of this data set under this tokenizer; a changed file gets another one."""
    files = [*local_files(args.dataset_name), *(f for f in Path(args.model_name).glob("*token*") if f.is_file())]
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    python = platform.python_version() if args.dataset_name == PYDOC or args.model_name == TINY_GPT2 else ""
    data = [args.dataset_name, args.dataset_config, args.dataset_split, args.text_column]
    what = [*data, args.model_name, stats, python]
    label = re.sub(r"\W+", "-", f"{args.dataset_name}-{args.model_name}").strip("-")[-60:]
    return f"{label}-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]}"


def tokenise(args: argparse.Namespace, folder: Path) -> None:
    """Write tokens.bin and meta.json into `folder`."""
    tokenizer = load_tokenizer(args)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    vocabulary, digest, count = len(tokenizer), hashlib.sha256(), 0
    dtype = np.uint16 if vocabulary <= 1 << 16 else np.uint32
    reported = time.monotonic()
    print_line(f"tokenising {args.dataset_name} for {args.model_name}, once on this node")
    with open(folder / "tokens.bin", "wb") as out:
        for texts in read_texts(args):
            if not (texts := [text for text in texts if text]):
                continue
            rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            flat = np.concatenate([np.array([*row, *end], dtype=dtype) for row in rows])
            out.write(flat.tobytes())
            digest.update(flat.tobytes())
            count += len(flat)
            if time.monotonic() - reported > 30:
                reported = time.monotonic()
                print_line(f"tokenising: {count} tokens so far")
    if count < 2:
        raise TrainError(f"--dataset-name {args.dataset_name}: it holds no text")
    meta = {"vocabulary": vocabulary, "dtype": np.dtype(dtype).name, "tokens": count, "sha256": digest.hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta))


def cut(corpus: Corpus, seq_length: int, eval_size: int) -> Corpus:
    """Return the corpus cut into sequences of `seq_length` tokens, the last ones held out."""
    total = (len(corpus.tokens) - 1) // seq_length
    if total < 2:
        raise TrainError(f"{len(corpus.tokens)} tokens are too few for 2 sequences of {seq_length}: lower --seq-length")
    return Corpus(corpus.tokens, corpus.vocabulary, corpus.digest, seq_length, max(1, min(eval_size, total // 20)))


@dataclass(frozen=True)
class Batching:
    """Division of a step's sequences over ranks, then over forward passes (micro-batches)."""

    global_size: int
    per_rank: int
    micro: int

    @property
    def accumulation(self) -> int:
        """Forward and backward passes per optimizer step."""
        return self.per_rank // self.micro


def plan_batches(batch_size: int, global_size: int | None, world_size: int) -> Batching:
    """Divide the global batch; a micro-batch is the largest divisor of a rank's share that is at most `batch_size`.

    Raises
    ------
    TrainError
        The global batch cannot be divided by the number of ranks.
    """
    global_size = global_size or batch_size * world_size
    per_rank, rest = divmod(global_size, world_size)
    if rest or not per_rank:
        raise TrainError(f"a global batch of {global_size} sequences cannot be divided over {world_size} ranks")
    micro = next(size for size in range(min(batch_size, per_rank), 0, -1) if per_rank % size == 0)
    return Batching(global_size, per_rank, micro)


def shuffle(index: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Return where `index` (each in 0..count-1) goes in this epoch's order of `count` sequences.

    A Feistel network is a permutation of the numbers of 2k bits that needs no memory; repeating it while the result is
    out of range makes it a permutation of 0..count-1 (Black and Rogaway, "Ciphers with arbitrary finite domains",
    2002). A list of all sequences would cost every rank 8 bytes per sequence.
    """
    keys = np.random.SeedSequence([seed, epoch]).generate_state(6, np.uint64)
    bits = max(1, ((count - 1).bit_length() + 1) // 2)
    half, mask = np.uint64(bits), np.uint64((1 << bits) - 1)

    def network(value: np.ndarray) -> np.ndarray:
        left, right = value >> half, value & mask
        for key in keys:
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(
                0xD6E8FEB86659FD93
            )  # with one product the order is too regular
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << half) | right

    result = network(index.astype(np.uint64))
    while (outside := result >= count).any():
        result[outside] = network(result[outside])
    return result.astype(np.int64)


def sequences_at(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return which sequences a run reads at `positions`, counted from its start, over epochs of `count` sequences."""
    epochs, offsets = np.divmod(positions, count)
    result = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        result[epochs == epoch] = shuffle(offsets[epochs == epoch], count, seed, epoch)
    return result


def training_batches(
    corpus: Corpus, plan: Batching, process: DistributedRank, seed: int, start: int, pin: bool
) -> Iterator[tuple[int, Tensor]]:
    """Yield (position, micro-batch) of this rank endlessly, from position `start` of the run; pinned if `pin`."""
    steps = max(1, 4096 // plan.per_rank)  # shuffled together: numpy's calls cost more than its work on a few numbers
    shape = np.arange(0, steps * plan.global_size, plan.global_size)[:, None] + np.arange(plan.per_rank)
    for base in itertools.count(start + process.rank * plan.per_rank, steps * plan.global_size):
        sequences = sequences_at((base + shape).ravel(), corpus.training, seed)
        for first in range(0, len(sequences), plan.micro):
            batch = corpus.read(sequences[first : first + plan.micro])
            position = base + int(shape.flat[first])
            yield position, batch.pin_memory() if pin else batch


def prefetch(source: Iterator[Any], device: torch.device, depth: int = 3) -> Generator[Any, None, None]:
    """Yield from an endless `source` that a thread reads, `depth` items ahead.

    A thread and not processes: nothing is forked, and nothing is left behind when the run is killed. The thread must
    set its GPU itself, else pinning would allocate memory on the first one.
    """
    with ThreadPoolExecutor(1, "prefetch", set_current_device, (device,)) as thread:
        ahead = deque(thread.submit(next, source) for _ in range(depth))
        while True:
            ahead.append(thread.submit(next, source))
            yield ahead.popleft().result()


# ---------------------------------------------------------------------------------------------------------------------
# 4. Model and optimizer
# ---------------------------------------------------------------------------------------------------------------------


def build_model(args: argparse.Namespace, vocabulary: int) -> nn.Module:
    """Return the float32 model of ``--model-name`` on the CPU; ``--seed`` determines its weights on every rank."""
    from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

    torch.manual_seed(args.seed)
    if args.model_name == TINY_GPT2:
        config = GPT2Config(vocab_size=vocabulary, n_positions=128, n_embd=64, n_layer=2, n_head=2, resid_pdrop=0.0,
                            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)  # fmt: skip
        return AutoModelForCausalLM.from_config(config, attn_implementation=causal_attention(config))
    with library_errors("--model-name", args.model_name):
        config = AutoConfig.from_pretrained(args.model_name)
        options = {"attn_implementation": causal_attention(config), "dtype": torch.float32}
        if args.weights == "pretrained":
            return AutoModelForCausalLM.from_pretrained(args.model_name, **options)
        config.vocab_size = (
            math.ceil(max(vocabulary, config.vocab_size) / 64) * 64
        )  # matrix units are fastest with round shapes
        return AutoModelForCausalLM.from_config(config, **options)


def causal_attention(config: Any) -> str:
    """Return the name of the attention to use: torch's scaled_dot_product_attention, without a mask where possible.

    transformers checks for packed sequences in every forward pass on the device, which stalls the hot loop. It calls
    attention under a name for which it has no mask with `is_causal` instead. Sliding windows need their mask.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return "sdpa"
    AttentionInterface.register("sdpa_causal", sdpa_attention_forward)
    return "sdpa_causal"


def longest_sequence(args: argparse.Namespace, config: Any) -> int:
    """Return tokens per sequence: ``--seq-length``, else the model's longest up to 1024."""
    longest = getattr(config, "max_position_embeddings", None) or 1024
    if args.seq_length and args.seq_length > longest:
        raise TrainError(f"--seq-length {args.seq_length}: {args.model_name} has {longest} positions")
    return int(args.seq_length or min(longest, 1024))


class NextTokenLoss(nn.Module):
    """The model and its loss as one module, so that DDP and torch.compile see both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the mean loss in nats per token of int64 `tokens` (batch, seq_length + 1)."""
        logits = self.model(input_ids=tokens[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def build_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    """Return fused AdamW; only matrices and embeddings decay, not biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)


def learning_rate(step: int, steps: int, args: argparse.Namespace) -> float:
    """Return the learning rate of `step` (0..steps-1): a linear rise over the warmup, then half a cosine down."""
    warmup = math.ceil(args.warmup_ratio * steps)
    if step < warmup:
        return float(args.lr * (step + 1) / warmup)
    done = min(1.0, (step - warmup) / max(1, steps - warmup - 1))
    return float(args.lr * (args.min_lr_ratio + (1 - args.min_lr_ratio) * (1 + math.cos(math.pi * done)) / 2))


def flops_per_token(model: Any, seq_length: int) -> float:
    """Return floating point operations per token, forward and backward (Chowdhery et al., "PaLM", 2022, appendix B)."""
    config = model.config
    positions = sum(p.numel() for name, p in model.named_parameters() if name.endswith("wpe.weight"))
    parameters = sum(p.numel() for p in model.parameters()) - positions
    return float(6 * parameters + 12 * config.num_hidden_layers * config.hidden_size * seq_length)


# Dense bf16 peak by a part of the GPU's name, in FLOP/s, from the vendors' data sheets.
PEAKS = {"B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
         "L4": 121e12, "RTX 4090": 165e12, "RTX 3090": 71e12}  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """Return the device's peak in FLOP/s, None if it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


# ---------------------------------------------------------------------------------------------------------------------
# 5. Checkpoints
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """Progress of a run. With ``--seed`` it determines everything that follows; there is no generator state to save."""

    step: int = 0  # optimizer steps done
    position: int = 0  # sequences read, over all ranks and epochs
    global_size: int | None = None  # sequences per step
    window: list[list[float]] = field(default_factory=list)  # loss, gradient norm of the steps since the last log line


def to_host(value: Any, buffer: Any = None) -> Any:
    """Copy nested tensors to host memory, into those of an earlier call if given; do not wait for the device."""
    if isinstance(value, Tensor):
        host = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda) if buffer is None else buffer
        return host.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return {key: to_host(item, buffer and buffer.get(key)) for key, item in value.items()}
    return [to_host(item) for item in value] if isinstance(value, list) else value


class Checkpoints:
    """The checkpoints of one experiment: ``step-00000500.pt`` in a folder, written by a thread of rank 0.

    A file gets its final name when it is complete and on the disk, so a kill at any moment leaves the last good one.

    Parameters
    ----------
    folder : Path
        Where they are stored.
    keep : int
        How many of the newest to keep.
    identity : dict
        What a resumed run must have in common: model, vocabulary, data.
    """

    def __init__(self, folder: Path, keep: int, identity: dict[str, Any]) -> None:
        self.folder, self.keep, self.identity = folder, keep, identity
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        self.buffer: Any = None
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = open(folder / ".lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.lock.close()
            raise TrainError(f"{folder.parent} is in use by another run; choose another --experiment-name") from error
        for part in folder.glob("*.part"):  # left by a save that was killed
            part.unlink()

    def all(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    def load(self) -> dict[str, Any] | None:
        """Return the newest checkpoint, None if there is none.

        Raises
        ------
        TrainError
            It belongs to another model, vocabulary or data set.
        """
        if not self.all():
            return None
        path = self.all()[-1]
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, OSError, EOFError) as error:
            raise TrainError(f"{path} cannot be read ({error}); remove it to resume from the one before") from error
        for key, mine in self.identity.items():
            if (its := state["identity"].get(key)) != mine:
                raise TrainError(f"{path} belongs to another run: its {key} is {its}, this run's is {mine}; choose "
                                 f"another --experiment-name, or start with what it was made with")  # fmt: skip
        return state

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy `state` to host memory and let the thread write it; wait only if it still writes the previous one."""
        self.wait()
        self.buffer = to_host({**state, "identity": self.identity}, self.buffer if torch.cuda.is_available() else None)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies must be complete before the next step changes their source
        self.writing = self.thread.submit(self.write, self.folder / f"step-{step:08}.pt", self.buffer)

    def write(self, path: Path, state: dict[str, Any]) -> None:
        """Write under a temporary name, flush to the disk, rename, then remove old checkpoints."""
        part = path.with_suffix(".part")
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        for old in self.all()[: -self.keep]:
            old.unlink()

    def wait(self) -> None:
        """Wait until the last save is on the disk; raise the error that prevented it."""
        writing, self.writing = self.writing, None
        if writing:
            writing.result()

    def close(self) -> None:
        """Wait for the last save, and unlock the folder."""
        self.wait()
        self.thread.shutdown()
        self.lock.close()


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's parameters and buffers by name, tied ones once."""
    return {name: t.data for name, t in [*model.named_parameters(), *model.named_buffers()]}


def on_rank_zero(action: Callable[[], Any]) -> Any:
    """Return what `action` returns on rank 0, None elsewhere; raise its exception on all ranks, so that none waits."""
    result, failure = None, list[Exception | None]([None])
    if dist.get_rank() == 0:
        try:
            result = action()
        except Exception as error:
            failure = [error]
    dist.broadcast_object_list(failure)
    if failure[0]:
        raise failure[0]
    return result


def restore(checkpoints: Checkpoints | None, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Load the newest checkpoint on rank 0 and send it to all ranks; return the progress to resume from."""

    def load() -> Progress | None:
        if not checkpoints or not (state := checkpoints.load()):
            return None
        for name, tensor in tensors_of(model).items():
            tensor.copy_(state["model"][name])
        optimizer.load_state_dict(state["optimizer"])
        return Progress(**state["progress"])

    found = [on_rank_zero(load)]
    dist.broadcast_object_list(found)
    if found[0]:
        broadcast_state(model, optimizer)
    return found[0] or Progress()


def broadcast_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Overwrite model and optimizer of every rank with rank 0's."""
    for tensor in tensors_of(model).values():
        dist.broadcast(tensor, 0)
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state[p]
            if not state:  # AdamW makes these at its first step
                state["step"] = torch.zeros((), device=p.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            for key in ("step", "exp_avg", "exp_avg_sq"):
                dist.broadcast(state[key], 0)


def export(folder: Path, model: Any, args: argparse.Namespace) -> None:
    """Write model and tokenizer so that ``from_pretrained(folder)`` loads them; an older export is replaced."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    load_tokenizer(args).save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


# ---------------------------------------------------------------------------------------------------------------------
# 6. Logging
# ---------------------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Divide the time of the steps since the last log line into parts, without waiting for the device.

    On a GPU the host runs ahead, so its clock is useless: events in the device's queue are read at the log line, when
    the device has passed them.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Discard all measurements; the next part begins now."""
        self.marks = [("", self.now())]

    def next_line(self) -> None:
        """Discard all but the last mark, so that no time is lost between two log lines."""
        self.marks = [("", self.marks[-1][1])]

    def now(self) -> Any:
        """Return the current time: seconds, or an event in the device's queue."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, part: str) -> None:
        """Record that `part` ends here; time that ends under the name "" is not counted."""
        self.marks.append((part, self.now()))

    def per_step(self, last_part: str) -> dict[str, float]:
        """Return milliseconds by part, the mean over the steps, each of which ended with `last_part`."""
        if self.cuda:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for (_, before), (part, after) in zip(self.marks, self.marks[1:], strict=False):
            spent = before.elapsed_time(after) if self.cuda else 1000 * (after - before)
            total[part] = total.get(part, 0.0) + spent
        total.pop("", None)
        steps = sum(part == last_part for part, _ in self.marks)
        return {part: milliseconds / max(1, steps) for part, milliseconds in total.items()}


class Window:
    """Loss and gradient norm of the steps since the last log line, kept on the device."""

    def __init__(self, size: int, device: torch.device, past: list[list[float]]) -> None:
        self.values = torch.zeros(max(size, len(past)), 2, device=device, dtype=torch.float64)
        self.count = len(past)
        if past:
            self.values[: self.count] = torch.tensor(past, dtype=torch.float64)

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Add one step."""
        self.values[self.count, 0], self.values[self.count, 1] = loss, norm
        self.count += 1

    def means(self, step: int) -> list[list[float]]:
        """Return [loss, gradient norm] of each step, the mean over ranks. All ranks must call it; waits for the device.

        Raises
        ------
        TrainError
            On every rank, naming step and rank, when a loss or a norm is not finite.
        """
        mine = self.values[: self.count].clone()
        mean = mine.clone()
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
        if not mean.isfinite().all():
            self.raise_not_finite(mine, step - self.count + 1)
        return mean.tolist()

    def raise_not_finite(self, mine: Tensor, first_step: int) -> None:
        """Raise for the first step with a value that is not finite, and name the ranks."""
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(every, mine)
        bad = ~torch.stack(every).isfinite()  # (rank, step, loss or norm)
        step = int(bad.any(dim=2).any(dim=0).nonzero()[0])
        part = 0 if bad[:, step, 0].any() else 1
        ranks = bad[:, step, part].nonzero().flatten().tolist()
        value = every[ranks[0]][step, part].item()
        raise TrainError(f"{('loss', 'gradient norm')[part]} is {value} at step {first_step + step} on rank "
                         f"{','.join(map(str, ranks))}: lower --lr, or check the data of that step")  # fmt: skip


class Log:
    """Output of rank 0: log lines, log.jsonl, a tracker, and a progress bar on a terminal.

    Parameters
    ----------
    folder : Path, optional
        The experiment's folder; None writes no files.
    tracker : str
        ``none``, ``tensorboard`` or ``wandb``.
    step, steps : int
        Start and end of the bar.
    """

    def __init__(self, folder: Path | None, tracker: str, step: int, steps: int) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        self.steps = steps
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=not sys.stderr.isatty(), leave=False)
        # One write per line: a kill leaves only whole lines.
        self.file = open(folder / "log.jsonl", "a", buffering=1) if folder else None
        self.track = open_tracker(tracker, folder, step)

    def log(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self.bar.clear()
        print_line(text)
        self.bar.refresh()

    def put(self, step: int, values: dict[str, float], columns: Mapping[str, str]) -> None:
        """Print and record the `values` of `step`; `columns` has the format of each that is printed."""
        shown = " ".join(f"{name}={values[name]:{form}}" for name, form in columns.items() if name in values)
        self.log(f"step={step}/{self.steps} {shown}")
        if self.file:
            self.file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self.track(step, values)

    def close(self) -> None:
        """Clear the bar and close the file."""
        self.bar.close()
        if self.file:
            self.file.close()


def open_tracker(tracker: str, folder: Path | None, step: int) -> Callable[[int, dict[str, float]], None]:
    """Return the function that records the scalars of a step.

    Raises
    ------
    TrainError
        The tracker's package is not installed, or there is no experiment to store the scalars in.
    """
    if tracker == "none":
        return lambda step, values: None
    if folder is None:
        raise TrainError(f"--tracker {tracker} needs an --experiment-name")
    try:
        if tracker == "wandb":
            import wandb  # type: ignore[import-not-found,unused-ignore]

            wandb.init(project=folder.parent.name, name=folder.name, id=folder.name, dir=folder, resume="allow")
            return lambda step, values: wandb.log(values, step=step)
        if tracker == "mlflow":
            return open_mlflow(folder)
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
    except ImportError as error:
        raise TrainError(f"--tracker {tracker}: not installed here, pip install {tracker}") from error

    def write(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return write


def open_mlflow(folder: Path) -> Callable[[int, dict[str, float]], None]:
    """Return the function that records scalars in MLflow, in one run for all attempts of the experiment.

    The server or store is MLflow's own setting, MLFLOW_TRACKING_URI. The file mlflow-run-id keeps the run's id.

    Raises
    ------
    TrainError
        MLflow cannot reach or open its store, or the store does not have the run of an earlier attempt.
    """
    import mlflow  # type: ignore[import-not-found,unused-ignore]

    id_file = folder / "mlflow-run-id"
    known = id_file.read_text().strip() if id_file.exists() else None
    try:
        mlflow.set_experiment(folder.parent.name)
        run = mlflow.start_run(run_id=known, run_name=None if known else folder.name)
    except mlflow.MlflowException as error:
        where = f"MLFLOW_TRACKING_URI={mlflow.get_tracking_uri()}"
        raise TrainError(f"--tracker mlflow: {error} ({where}; run {known or 'new'}, see {id_file})") from error
    id_file.write_text(run.info.run_id + "\n")
    # Sent by a thread of MLflow: a slow server does not delay a step.
    return lambda step, values: mlflow.log_metrics(values, step=step, synchronous=False)


def memory_gb(device: torch.device) -> float:
    """Return the peak memory of this rank in GB: the GPU's if there is one, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB


# ---------------------------------------------------------------------------------------------------------------------
# 7. The training loop
# ---------------------------------------------------------------------------------------------------------------------

TRAIN_COLUMNS = {
    "loss": ".4f", "lr": ".2e", "grad_norm": ".2f", "tokens/s": ".0f", "step_ms": ".1f", "data_ms": ".1f",
    "forward_ms": ".1f", "backward_ms": ".1f", "update_ms": ".1f", "log_ms": ".1f", "save_ms": ".1f",
    "memory_gb": ".2f", "mfu": ".3f",
}  # fmt: skip


class SaveSignal:
    """Catch SIGTERM (save and stop) and SIGUSR1 (save and go on), and agree over all ranks on the step to do it after.

    Ranks receive a signal at different times. An all-reduce shares it: it starts before each step and is read after the
    step, on the CPUs, in parallel with the step's work.
    """

    def __init__(self) -> None:
        self.received = 0
        self.group = dist.new_group(backend="gloo")
        self.flag = torch.zeros(1, dtype=torch.int32)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.on_signal)

    def on_signal(self, number: int, frame: Any) -> None:
        """Record a signal (as a handler). A second one changes nothing, and SIGTERM (15) outweighs SIGUSR1 (10)."""
        self.received = max(self.received, number)

    @contextlib.contextmanager
    def agree(self) -> Iterator[None]:
        """Exchange signals while the `with` block runs; then `flag` is the signal's number on all ranks, or 0."""
        self.flag.fill_(self.received)
        others = dist.get_world_size() > 1
        work = dist.all_reduce(self.flag, dist.ReduceOp.MAX, group=self.group, async_op=True) if others else None
        yield
        if work:
            work.wait()
        if self.received == int(self.flag) == signal.SIGUSR1:  # this step's save is the one that was asked for
            self.received = 0

    @property
    def stops(self) -> bool:
        """Whether the ranks have agreed to stop."""
        return int(self.flag) == signal.SIGTERM


class Trainer:
    """One training run: its parts and its loop.

    Parameters
    ----------
    args : argparse.Namespace
        The command line.
    process : DistributedRank
        Rank, local rank and world size of this process.
    device : torch.device
        Device to train on.
    """

    def __init__(self, args: argparse.Namespace, process: DistributedRank, device: torch.device) -> None:
        self.args, self.process, self.device = args, process, device
        self.folder = args.save_dir / args.experiment_name if args.experiment_name and process.is_main else None
        corpus = open_corpus(args)
        self.model: Any = build_model(args, corpus.vocabulary).to(device)
        self.corpus = cut(corpus, longest_sequence(args, self.model.config), args.eval_size)
        self.wait_for_slow_nodes()
        self.optimizer = build_optimizer(self.model, args)
        self.checkpoints: Checkpoints | None = on_rank_zero(self.open_checkpoints)
        self.progress = restore(self.checkpoints, self.model, self.optimizer)
        global_size = args.global_batch_size or self.progress.global_size
        self.batching = plan_batches(args.batch_size, global_size, process.world_size)
        self.steps = args.max_steps or max(1, args.num_epochs * self.corpus.training // self.batching.global_size)
        self.loss = NextTokenLoss(self.model)
        self.ddp: Any = self.wrap()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        # Not torch.manual_seed: without a GPU it walks the stack for each GPU that it does not find, 1.5 ms.
        gpus = torch.cuda.default_generators
        self.generator = gpus[device.index] if device.type == "cuda" else torch.default_generator
        self.signal = SaveSignal()
        self.watch = Stopwatch(device)
        self.window = Window(args.log_freq, device, self.progress.window)
        self.log: Log | None = on_rank_zero(self.open_log)

    def wait_for_slow_nodes(self) -> None:
        """Wait for nodes that still tokenise, which may take hours, and check that all ranks have the same data."""
        patient = dist.new_group(backend="gloo", timeout=timedelta(days=2))
        digests: list[Any] = [None] * self.process.world_size
        dist.all_gather_object(digests, self.corpus.digest, group=patient)
        if odd := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
            raise TrainError(f"rank {odd[0]} has other data than rank 0: the files of --dataset-name or Python differ")

    def open_checkpoints(self) -> Checkpoints | None:
        """Return the experiment's checkpoints, if it has a name (rank 0)."""
        return Checkpoints(self.folder / "checkpoints", self.args.keep, self.identity()) if self.folder else None

    def open_log(self) -> Log:
        """Return the log, after printing and recording every default that was chosen (rank 0)."""
        log = Log(self.folder, self.args.tracker, self.progress.step, self.steps)
        for line in self.describe():
            log.log(line)
        if self.folder:
            config = {"arguments": vars(self.args), "place": vars(self.process), "torch": torch.__version__}
            (self.folder / "config.json").write_text(json.dumps(config, indent=1, default=str))
        return log

    def describe(self) -> Iterator[str]:
        """Yield the lines that describe this run."""
        args, corpus, plan = self.args, self.corpus, self.batching
        parameters = sum(p.numel() for p in self.parameters) / 1e6
        epochs = self.steps * plan.global_size / corpus.training
        yield f"model: {args.model_name}, {args.weights}, {parameters:.2f} M parameters, {corpus.vocabulary} tokens"
        yield (f"data: {args.dataset_name}, {len(corpus.tokens)} tokens = {corpus.training} sequences of "
               f"{corpus.seq_length} tokens to train on + {corpus.held_out} to validate")  # fmt: skip
        yield (f"batch: {plan.global_size} sequences = {self.process.world_size} ranks x {plan.accumulation} passes "
               f"x {plan.micro}; {self.steps} steps = {epochs:.2f} epochs")  # fmt: skip
        if self.progress.step:
            more = "" if self.progress.step < self.steps else "; to train on, raise --num-epochs or --max-steps"
            yield f"resumed at step {self.progress.step} from {self.folder}{more}"

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must have in common with this run to be resumed."""
        config = self.model.config
        names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        data = {"vocabulary": self.corpus.vocabulary, "data": self.corpus.digest[:16]}
        run = {"seq_length": self.corpus.seq_length, "seed": self.args.seed}
        return {**{name: getattr(config, name, None) for name in names}, **data, **run}

    def wrap(self) -> nn.Module:
        """Return the loss module, compiled if requested, under DDP if there are other ranks."""
        module: Any = torch.compile(self.loss) if self.args.compile else self.loss
        if self.process.world_size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Views into the buckets save a copy of all gradients. No buffer changes in training, so none is broadcast.
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True, forward_sync_buffers=False)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward pass: matrix products in bfloat16 if ``--dtype`` selects it."""
        auto = self.args.dtype == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=auto or self.args.dtype == "bfloat16")

    def train(self) -> int:
        """Train to the end or to a signal; return the signal's number, 0 at the end."""
        with contextlib.closing(self.batches()) as batches:
            self.watch.restart()
            while self.progress.step < self.steps and not self.signal.stops:
                self.advance(batches)
        return self.finish()

    def batches(self) -> Generator[tuple[int, Tensor], None, None]:
        """Return this rank's micro-batches from the current position on, read ahead."""
        pin = self.device.type == "cuda"
        start = self.progress.position
        source = training_batches(self.corpus, self.batching, self.process, self.args.seed, start, pin)
        return prefetch(source, self.device)

    def advance(self, batches: Iterator[tuple[int, Tensor]]) -> None:
        """Do one step; then log, evaluate and save if due."""
        with self.signal.agree():
            self.step(batches)
        self.after_step()

    def step(self, batches: Iterator[tuple[int, Tensor]]) -> None:
        """Do one optimizer step: forward and backward of each micro-batch, then update. Never waits for the device."""
        total = torch.zeros((), device=self.device)
        for micro in range(self.batching.accumulation):
            last = micro == self.batching.accumulation - 1
            position, batch = next(batches)
            tokens = batch.to(self.device, non_blocking=True)
            self.generator.manual_seed(self.args.seed + position)  # dropout depends on the position, not on history
            self.watch.mark("data")
            # Gradients are summed here first; only the last backward pass sends them to the other ranks.
            with contextlib.nullcontext() if last or self.process.world_size == 1 else self.ddp.no_sync():
                with self.autocast():
                    loss = self.ddp(tokens) / self.batching.accumulation
                self.watch.mark("forward")
                loss.backward()
                self.watch.mark("backward")
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.args.grad_clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress.step, self.steps, self.args)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.window.add(total, norm)
        self.watch.mark("update")

    def after_step(self) -> None:
        """Count the step; log, evaluate and save if due."""
        args, done = self.args, self.progress
        done.step += 1
        done.position += self.batching.global_size
        last = done.step == self.steps
        if self.log:
            self.log.bar.update()
        if self.window.count >= args.log_freq or last:
            self.log_line()
        if last or (args.eval_freq and done.step % args.eval_freq == 0):
            self.evaluate()
            self.watch.mark("")
        if last or self.signal.flag or (args.ckpt_freq and done.step % args.ckpt_freq == 0):
            self.save()
            self.watch.mark("save")

    def log_line(self) -> None:
        """Log the mean over ranks and over the steps since the last line. Waits for the device."""
        rows = self.window.means(self.progress.step)
        parts = self.watch.per_step("update")
        step_ms = sum(parts.values())
        tokens_s = 1000 * self.batching.global_size * self.corpus.seq_length / step_ms
        values = {
            "loss": sum(row[0] for row in rows) / len(rows),
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": sum(row[1] for row in rows) / len(rows),
            "tokens/s": tokens_s,
            "step_ms": step_ms,
            **{f"{part}_ms": milliseconds for part, milliseconds in parts.items()},
            "memory_gb": memory_gb(self.device),
        }
        if peak := peak_flops(self.device):
            flops = flops_per_token(self.model, self.corpus.seq_length)
            values["mfu"] = tokens_s * flops / (peak * self.process.world_size)
        if self.log:
            self.log.put(self.progress.step, values, TRAIN_COLUMNS)
        self.window.count = 0
        self.watch.next_line()
        self.watch.mark("log")

    @torch.no_grad()
    def evaluate(self) -> None:
        """Log the mean loss of the held-out sequences; each rank computes its share."""
        self.model.eval()
        total = torch.zeros(2, device=self.device, dtype=torch.float64)
        mine = np.arange(self.corpus.training + self.process.rank, self.corpus.total, self.process.world_size)
        for first in range(0, len(mine), self.batching.micro):
            some = mine[first : first + self.batching.micro]
            with self.autocast():
                loss = self.loss(self.corpus.read(some).to(self.device))
            total[0] += loss.double() * len(some)
            total[1] += len(some)
        dist.all_reduce(total)
        self.model.train()
        if self.log:
            value = (total[0] / total[1]).item()
            columns = {"eval_loss": ".4f", "perplexity": ".1f"}
            self.log.put(self.progress.step, {"eval_loss": value, "perplexity": math.exp(min(value, 700))}, columns)

    def save(self) -> None:
        """Save a checkpoint, of finite numbers only. All ranks must call it; rank 0 writes."""
        progress = self.progress
        progress.global_size = self.batching.global_size
        progress.window = self.window.means(progress.step) if self.window.count else []
        if self.checkpoints:
            state = {"model": tensors_of(self.model), "optimizer": self.optimizer.state_dict()}
            self.checkpoints.save(progress.step, {"progress": vars(progress), **state})

    def finish(self) -> int:
        """Wait for the last checkpoint, export the model if training is complete, log the result; return the signal."""
        received = int(self.signal.flag) if self.signal.stops and self.progress.step < self.steps else 0
        if self.folder and not received:
            export(self.folder / "export", self.model, self.args)
        if self.checkpoints:
            self.checkpoints.close()
        if self.log:
            state = f"stopped by {signal.Signals(received).name}" if received else "done"
            where = f"saved in {self.folder}" if self.folder else "nothing saved: no --experiment-name"
            self.log.log(f"{state} at step {self.progress.step} of {self.steps}; {where}")
            self.log.close()
        return received


# ---------------------------------------------------------------------------------------------------------------------
# 8. Main
# ---------------------------------------------------------------------------------------------------------------------


def print_one_line(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print a TrainError as one line, anything else with its traceback (as sys.excepthook)."""
    if issubclass(kind, TrainError):
        print(f"train_llm.py: error: {error}", file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, trace)


@record  # writes the traceback of a failing rank to $TORCHELASTIC_ERROR_FILE
def main() -> None:
    sys.excepthook = print_one_line
    # `kill -USR2` on a rank that hangs prints the stacks of all its threads to stderr, also where ptrace is forbidden.
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    args = parse_arguments()
    avoid_waiting_for_the_hub([args.model_name, args.dataset_name])
    process = detect_rank(os.environ, args.local_rank, torch.cuda.device_count())
    device = connect(process, args.timeout)
    try:
        received = Trainer(args, process, device).train()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrainError(f"rank {process.rank}: out of memory; lower --batch-size {args.batch_size} "
                         f"(--global-batch-size keeps the steps as they are), or --seq-length") from error  # fmt: skip
    dist.destroy_process_group()
    sys.exit(128 + received if received else 0)


if __name__ == "__main__":
    main()
