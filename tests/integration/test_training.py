"""train_llm.py as users run it: real processes, real launchers, real signals. Tiny model, one thread a process."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train_llm
from tests.integration.fab import BIGRAM, QUICK_TORCH
from tests.support import absent, require

ROOT = Path(__file__).parent.parent.parent
SCRIPT, SMALL_MODEL = BIGRAM  # a rank of the second starts in a third of the time

PYTHON = sys.executable
TORCHRUN = (PYTHON, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
SMALL = ("--global-batch-size", "4", "--batch-size", "4", "--seq-length", "32", "--eval-size", "8", "--log-freq", "1")
STEPS = "120"  # enough for ten kills
FEW = "20"
LAUNCHERS_OWN = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "OMPI_", "PMI_", "MPI_", "SLURM_", "TORCHELASTIC_")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS_OWN)} | {
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONPATH": f"{QUICK_TORCH}{os.pathsep}{ROOT}",
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data cache that all tests share."""
    return tmp_path_factory.mktemp("cache")


def wait_for(moment: Callable[[], object], process: Training | Forked) -> None:
    """Wait until `moment` is true while the process runs."""
    deadline = time.monotonic() + 120
    while not moment():
        assert process.runs(), f"ended too early:\n{process.file.read_text()}"
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.0005)


class Forked:
    """A training forked from a process with all imports done: it starts in 0.5 s, not 5 s."""

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_llm", "transformers.models.gpt2.modeling_gpt2"])

    def __init__(self, argv: Sequence[str], output: Path) -> None:
        self.file = output
        self.process = self.context.Process(target=train_in_this_process, args=(list(argv), str(output)))
        self.process.start()

    def runs(self) -> bool:
        """Return whether it still does."""
        return self.process.is_alive()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.terminate()

    def output(self) -> str:
        """Wait for the end; return the output."""
        self.process.join(240)
        return self.file.read_text(errors="replace")

    @property
    def returncode(self) -> int | None:
        """Its exit code, once it has ended."""
        return self.process.exitcode

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.join()


def train_in_this_process(argv: list[str], output: str) -> None:
    """Run train_llm.py with these arguments and one thread."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    torch.set_num_threads(1)
    sys.argv[1:] = argv
    train_llm.main()


class Training(subprocess.Popen[bytes]):
    """A training under some launcher, in a session of its own, with its output in a file."""

    def __init__(self, argv: Sequence[str], env: dict[str, str], output: Path) -> None:
        self.file = output
        with output.open("wb") as file:
            super().__init__(argv, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True)

    def output(self) -> str:
        """Wait for the end; return the output."""
        self.wait(timeout=240)
        return self.file.read_text(errors="replace")

    def runs(self) -> bool:
        """Return whether it still does."""
        return self.poll() is None

    def end(self) -> None:
        """Kill it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


class Experiment:
    """One experiment in its own folder, and its processes."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.checkpoints = folder / "x" / "checkpoints"
        self.processes: list[Training | Forked] = []
        self.script = SCRIPT

    def argv(self, *options: str) -> tuple[str, ...]:
        """Return the arguments of train_llm.py."""
        names = ("--experiment-name", "x", "--save-dir", str(self.folder), "--dataset-cache-root", str(self.cache))
        return (*SMALL, *names, *options)

    def start(self, *options: str, launcher: Sequence[str] = (PYTHON,), **env: str) -> Training:
        """Start a training under `launcher`."""
        argv = [*launcher, str(ROOT / self.script), *self.argv(*options)]
        training = Training(argv, ENVIRONMENT | env, self.folder / f"output-{len(self.processes)}")
        self.processes.append(training)
        return training

    def fork(self, *options: str) -> Forked:
        """Start a training on one forked process, which need not import anything."""
        training = Forked(self.argv(*options), self.folder / f"output-{len(self.processes)}")
        self.processes.append(training)
        return training

    def run(self, *options: str, launcher: Sequence[str] = (), code: int = 0, **env: str) -> str:
        """Train to the end; return the output. `code` is the exit code to expect."""
        own = launcher or env  # otherwise a forked process is equivalent to a started one
        training = self.start(*options, launcher=launcher or (PYTHON,), **env) if own else self.fork(*options)
        output = training.output()
        assert training.returncode == code, output
        return output

    def records(self) -> list[dict[str, float]]:
        """Return the lines of log.jsonl."""
        file = self.folder / "x" / "log.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def reaches(self, steps: int) -> Callable[[], bool]:
        """Return whether `steps` more steps are done than are now, as a function."""
        goal = max(self.losses(), default=0) + steps
        return lambda: max(self.losses(), default=0) >= goal

    def losses(self) -> dict[int, float]:
        """Return the training loss by step; after a resume the later line counts."""
        return {int(r["step"]): r["loss"] for r in self.records() if "loss" in r}


@pytest.fixture
def experiment(tmp_path: Path, cache: Path) -> Iterator[Experiment]:
    experiment = Experiment(tmp_path, cache)
    yield experiment
    for training in experiment.processes:
        training.end()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Experiment:
    """Return one uninterrupted training of STEPS steps on one process."""
    experiment = Experiment(tmp_path_factory.mktemp("reference"), cache)
    experiment.run("--max-steps", STEPS, launcher=(PYTHON,))
    return experiment


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Experiment:
    """Return one uninterrupted training of a FEW steps of the small model on one process."""
    experiment = Experiment(tmp_path_factory.mktemp("short"), cache)
    experiment.script = SMALL_MODEL
    experiment.run("--max-steps", FEW, launcher=(PYTHON,))
    return experiment


class TestResume:
    def test_a_training_killed_at_any_moment_resumes_exactly(
        self, experiment: Experiment, reference: Experiment, thorough: bool
    ) -> None:
        options, dice, halves = ("--max-steps", STEPS, "--ckpt-freq", "3"), random.Random(0), 0
        for kill in range(10 if thorough else 3):
            training = experiment.fork(*options)
            if kill % 3 == 1:  # in the middle of a save
                wait_for(lambda: list(experiment.checkpoints.glob("*.part")), training)
            else:
                wait_for(experiment.reaches(dice.randint(2, 8)), training)
                time.sleep(dice.random() * 0.02)
            training.end()
            halves += len(list(experiment.checkpoints.glob("*.part")))
        assert halves, "no kill hit a save"
        assert "resumed at step" in experiment.run(*options, launcher=(PYTHON,))
        expected = reference.losses()
        assert sorted(experiment.losses()) == sorted(expected)
        for record in experiment.records():  # also the repeated steps
            if "loss" in record:
                assert record["loss"] == pytest.approx(expected[int(record["step"])], abs=1e-6)

    @pytest.mark.parametrize(
        ("first", "second"),
        [(TORCHRUN, (PYTHON,)), ((PYTHON,), TORCHRUN)],
        ids=["2 to 1", "1 to 2"],
    )
    def test_a_signal_saves_and_another_number_of_processes_resumes(
        self, experiment: Experiment, reference: Experiment, first: Sequence[str], second: Sequence[str]
    ) -> None:
        options = ("--max-steps", STEPS, "--ckpt-freq", "0", "--batch-size", "4")
        training = experiment.start(*options, launcher=first)
        wait_for(lambda: len(experiment.losses()) > 10, training)
        saved = set()
        if first == (PYTHON,):  # torchrun itself would be ended by it
            training.send_signal(signal.SIGUSR1)
            wait_for(lambda: list(experiment.checkpoints.glob("step-*.pt")), training)
            saved = set(experiment.checkpoints.glob("step-*.pt"))
            noted = len(experiment.losses())
            wait_for(lambda: len(experiment.losses()) > noted, training)
        training.send_signal(signal.SIGTERM)
        assert "stopped by SIGTERM" in training.output()
        if first == (PYTHON,):
            assert training.returncode == 128 + signal.SIGTERM
        done = max(experiment.losses())
        assert set(experiment.checkpoints.glob("step-*")) - saved == {experiment.checkpoints / f"step-{done:08}.pt"}
        assert f"resumed at step {done}" in experiment.run(*options, launcher=second)
        assert [r["step"] for r in experiment.records() if "loss" in r] == list(
            range(1, int(STEPS) + 1)
        )  # nothing repeated
        ours, theirs = experiment.losses(), reference.losses()
        assert max(abs(ours[step] - theirs[step]) for step in range(1, done + 11)) < 1e-6
        assert max(abs(ours[step] - theirs[step]) for step in ours) < 1e-4

    def test_the_log_window_survives_a_resume(self, experiment: Experiment, reference: Experiment) -> None:
        options = ("--max-steps", STEPS, "--log-freq", "20", "--ckpt-freq", "0")
        training = experiment.fork(*options)
        wait_for(experiment.losses, training)
        training.terminate()
        assert "stopped by SIGTERM" in training.output()
        experiment.run(*options)
        for step, loss in experiment.losses().items():
            steps = [reference.losses()[s] for s in range(step - 19, step + 1)]
            assert loss == pytest.approx(sum(steps) / 20, abs=1e-6)

    def test_a_finished_training_does_nothing_and_a_longer_one_continues(self, experiment: Experiment) -> None:
        experiment.run("--max-steps", "3")
        assert "done at step 3 of 3" in experiment.run("--max-steps", "3")
        assert "resumed at step 3" in experiment.run("--max-steps", "5")
        assert list(experiment.losses()) == [1, 2, 3, 4, 5]


def per_gpu(experiment: Experiment, *options: str) -> str:
    """Start one python per rank, as launch-per-gpu does."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [experiment.start(*options, RANK=rank, LOCAL_RANK=rank, **common) for rank in "01"]
    return "".join(rank.output() for rank in ranks)


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def argv_of(launcher: str, tmp_path: Path) -> tuple[str, ...]:
    """Return the command of a launcher that starts two processes here."""
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    port = str(free_port())
    return {
        "python": (PYTHON,),
        "torchrun": TORCHRUN,
        "mpirun.openmpi": ("mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-n", "2", PYTHON),
        "mpiexec.hydra": ("mpiexec.hydra", "-n", "2", PYTHON),
        "deepspeed": (str(Path(PYTHON).with_name("deepspeed")), "--hostfile", str(tmp_path / "hosts"), "--no_ssh",
                      "--node_rank", "0", "--master_addr", "127.0.0.1", "--master_port", port),
    }[launcher]  # fmt: skip


class TestLaunchers:
    @pytest.mark.parametrize(
        ("launcher", "source"),
        [
            ("torchrun", "torchrun"),
            ("mpirun.openmpi", "Open MPI"),
            ("mpiexec.hydra", "MPICH"),
            ("deepspeed", "RANK and --local_rank"),
        ],
    )
    def test_every_launcher_gives_the_same_losses(
        self, experiment: Experiment, short: Experiment, tmp_path: Path, launcher: str, source: str
    ) -> None:
        argv = argv_of(launcher, tmp_path)
        require(argv[0])
        experiment.script = SMALL_MODEL
        output = experiment.run("--max-steps", FEW, "--ckpt-freq", "0", launcher=argv)
        for rank in (0, 1):
            assert f"rank={rank} local_rank={rank} world_size=2 (from {source})" in output
        assert experiment.losses()[20] == pytest.approx(short.losses()[20], abs=1e-4)

    def test_launch_per_gpu_gives_the_same_losses(self, experiment: Experiment, short: Experiment) -> None:
        experiment.script = SMALL_MODEL
        output = per_gpu(experiment, "--max-steps", FEW, "--ckpt-freq", "0")
        assert "rank=1 local_rank=1 world_size=2 (from RANK)" in output
        assert experiment.losses()[20] == pytest.approx(short.losses()[20], abs=1e-4)


class TestData:
    TEXTS = ("A first document, of some words.\nAnd lines.", "Another one: grün, 漢字.") * 40

    def corpus(self, path: Path, cache: Path) -> train_llm.Corpus:
        return train_llm.open_corpus(self.arguments(path, cache))

    def arguments(self, path: Path, cache: Path, *more: str) -> argparse.Namespace:
        return train_llm.parse_arguments(["--dataset-name", str(path), "--dataset-cache-root", str(cache), *more])

    def test_each_kind_of_file_gives_the_same_tokens(self, tmp_path: Path, cache: Path) -> None:
        from datasets import Dataset  # type: ignore[import-untyped]

        data = Dataset.from_dict({"text": list(self.TEXTS)})
        data.to_json(tmp_path / "a.jsonl")
        data.to_parquet(tmp_path / "a.parquet")
        data.save_to_disk(tmp_path / "arrow")
        corpora = [self.corpus(tmp_path / name, cache) for name in ("a.jsonl", "a.parquet", "arrow")]
        assert len({corpus.digest for corpus in corpora}) == 1
        tokenizer = train_llm.load_tokenizer(self.arguments(tmp_path, cache))
        documents = tokenizer.decode(corpora[0].tokens.tolist()).split(train_llm.END_OF_TEXT)
        assert documents == [*self.TEXTS, ""]

    def test_text_is_unchanged_and_a_second_start_reads_no_text(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.txt").write_text("".join(self.TEXTS))
        corpus = self.corpus(tmp_path / "a.txt", cache)
        tokenizer = train_llm.load_tokenizer(self.arguments(tmp_path, cache))
        assert tokenizer.decode(corpus.tokens.tolist()) == "".join(self.TEXTS) + train_llm.END_OF_TEXT
        monkeypatch.setattr(train_llm, "tokenise", lambda *_: pytest.fail("tokenised again"))
        assert self.corpus(tmp_path / "a.txt", cache).digest == corpus.digest

    @pytest.mark.parametrize(
        ("text", "more", "named"),
        [
            ('{"body": "x"}\n', (), "--text-column text: the data set has body"),
            ("this is not json\n", (), "--dataset-name"),
            ("", (), "--dataset-name"),
        ],
    )
    def test_a_bad_file_is_a_one_line_error(
        self, tmp_path: Path, cache: Path, text: str, more: tuple[str, ...], named: str
    ) -> None:
        (tmp_path / "a.jsonl").write_text(text)
        with pytest.raises(train_llm.TrainError, match=named) as error:
            train_llm.open_corpus(self.arguments(tmp_path / "a.jsonl", cache, *more))
        assert "\n" not in str(error.value)


class TestFailing:
    @pytest.mark.parametrize("option", ["--dataset-name", "--model-name"])
    def test_an_unknown_name_offline_is_a_one_line_error(self, experiment: Experiment, option: str) -> None:
        output = experiment.run(option, "no-such/name", code=1, HF_ENDPOINT="https://hub.invalid")
        assert "Traceback" not in output
        (line,) = [line for line in output.splitlines() if "error" in line]
        assert f"train_llm.py: error: {option} no-such/name: not embedded, no local file or folder" in line

    def test_a_checkpoint_of_another_model_is_refused_on_every_rank(
        self, experiment: Experiment, tmp_path: Path, cache: Path
    ) -> None:
        from transformers import GPT2Config

        experiment.run("--max-steps", "2")
        tokenizer = train_llm.load_tokenizer(train_llm.parse_arguments(["--dataset-cache-root", str(cache)]))
        GPT2Config(vocab_size=1024, n_embd=32, n_layer=1, n_head=2, n_positions=64).save_pretrained(tmp_path / "other")
        tokenizer.save_pretrained(tmp_path / "other")
        output = experiment.run("--max-steps", "4", "--model-name", str(tmp_path / "other"), launcher=TORCHRUN, code=1)
        assert output.count("its hidden_size is 64, this run's is 32; choose another --experiment-name") >= 1
        assert list(experiment.losses()) == [1, 2]

    def test_a_loss_that_is_not_finite_stops_and_leaves_its_traceback(
        self, experiment: Experiment, tmp_path: Path
    ) -> None:
        error_file = tmp_path / "error.json"
        wild = ("--lr", "1e30", "--grad-clip", "0", "--warmup-ratio", "0", "--max-steps", "50", "--ckpt-freq", "1")
        output = experiment.run(*wild, code=1, TORCHELASTIC_ERROR_FILE=str(error_file))
        assert "train_llm.py: error: " in output
        assert " at step " in output
        assert " on rank 0: lower --lr" in output
        assert "raise_not_finite" in error_file.read_text()  # the traceback


class TestResults:
    def test_a_run_writes_scalars_and_an_export_that_transformers_loads(self, experiment: Experiment) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            absent("the package tensorboard is not installed")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        run = ("--max-steps", "40", "--tracker", "tensorboard", "--eval-freq", "20", "--lr", "3e-3")
        experiment.run(*run, launcher=(PYTHON,))
        losses = experiment.losses()
        assert losses[40] < losses[1] - 0.5
        evaluations = {r["step"]: r["eval_loss"] for r in experiment.records() if "eval_loss" in r}
        assert evaluations[40] < evaluations[20]
        folder = experiment.folder / "x"
        assert list((folder / "tensorboard").glob("events.*"))
        assert json.loads((folder / "config.json").read_text())["arguments"]["max_steps"] == 40
        model: Any = AutoModelForCausalLM.from_pretrained(folder / "export")
        model.eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / "export")
        args = train_llm.parse_arguments(["--dataset-cache-root", str(experiment.cache)])
        corpus = train_llm.cut(train_llm.open_corpus(args), 32, 8)
        assert len(tokenizer) == corpus.vocabulary
        with torch.inference_mode():
            held_out = corpus.read(np.arange(corpus.training, corpus.total))
            assert train_llm.NextTokenLoss(model)(held_out).item() == pytest.approx(evaluations[40], abs=1e-5)

    def test_ranks_without_cached_tokens_tokenise_once(self, experiment: Experiment, tmp_path: Path) -> None:
        experiment.cache = tmp_path / "cold"
        output = experiment.run("--max-steps", "2", launcher=TORCHRUN)
        assert output.count("tokenising pydoc") == 1
