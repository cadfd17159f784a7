"""train_llm.py's pure parts: rank detection, packing and dividing data, the schedule, errors."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import train_llm
from train_llm import Batching, Corpus, DistributedRank, TrainError

pytestmark = pytest.mark.slow

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SRUN = {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "n[2-3]"}


def arguments(*argv: str) -> argparse.Namespace:
    return train_llm.parse_arguments(list(argv))


def corpus_of(count: int, seq_length: int, held_out: int = 1) -> Corpus:
    return Corpus(np.arange(count, dtype=np.uint16), 1 << 16, "digest", seq_length, held_out)


class TestDetectRank:
    def test_without_a_launcher_there_is_one_process(self) -> None:
        assert train_llm.detect_rank({}) == DistributedRank(0, 0, 1, "no launcher: a single process")

    @pytest.mark.parametrize(
        ("env", "expected"),
        [
            (TORCHRUN, DistributedRank(5, 1, 8, "torchrun", one_node=False)),
            ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, DistributedRank(1, 1, 2, "RANK", one_node=False)),
            (OPEN_MPI, DistributedRank(3, 1, 4, "Open MPI", one_node=False)),
            (MPICH, DistributedRank(1, 1, 2, "MPICH", one_node=True)),
            (SRUN, DistributedRank(2, 0, 4, "srun", one_node=False)),
        ],
    )
    def test_each_launcher_is_recognised(self, env: dict[str, str], expected: DistributedRank) -> None:
        assert train_llm.detect_rank(env) == expected

    def test_the_innermost_launcher_wins(self) -> None:
        assert train_llm.detect_rank(SRUN | TORCHRUN).rank == 5
        assert train_llm.detect_rank(SRUN | MPICH).rank == 1

    def test_a_batch_script_of_slurm_is_not_a_task(self) -> None:
        assert train_llm.detect_rank({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}).world_size == 1

    def test_the_local_rank_of_deepspeed_wins(self) -> None:
        process = train_llm.detect_rank({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, local_rank=1)
        assert (process.local_rank, process.source) == (1, "RANK and --local_rank")

    @pytest.mark.parametrize(("gpus", "local_rank"), [(0, 5), (4, 1)])
    def test_without_a_local_rank_it_is_the_rank_modulo_gpus(self, gpus: int, local_rank: int) -> None:
        assert train_llm.detect_rank({"RANK": "5", "WORLD_SIZE": "8"}, gpus=gpus).local_rank == local_rank

    @pytest.mark.parametrize(
        ("env", "named"),
        [
            ({"RANK": "1"}, "WORLD_SIZE"),
            ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK, got 'one'"),
            ({"RANK": "-1", "WORLD_SIZE": "2"}, "'-1'"),
            ({"RANK": "2", "WORLD_SIZE": "2"}, "2 of 2"),
            ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": ""}, "LOCAL_RANK"),
        ],
    )
    def test_a_missing_variable_is_named_in_the_error(self, env: dict[str, str], named: str) -> None:
        with pytest.raises(TrainError, match=named):
            train_llm.detect_rank(env)

    def test_the_environment_is_not_changed(self) -> None:
        env = dict(TORCHRUN)
        train_llm.detect_rank(env)
        assert env == TORCHRUN


class TestMaster:
    def test_the_launchers_master_address_and_port_win(self) -> None:
        env = {"MASTER_ADDR": "h1", "MASTER_PORT": "5"}
        assert train_llm.master_address(env, DistributedRank(world_size=2, one_node=False), 1) == ("h1", "5")

    def test_on_one_node_the_port_follows_from_the_launchers_pid(self) -> None:
        assert train_llm.master_address({}, DistributedRank(source="MPICH", world_size=2), 20_007) == (
            "127.0.0.1",
            "10007",
        )

    def test_slurm_gives_the_first_node_and_a_port_for_the_step(self) -> None:
        env = {"SLURM_STEP_NODELIST": "n[2-3]", "SLURM_JOB_ID": "10", "SLURM_STEP_ID": "3"}
        assert train_llm.master_address(env, DistributedRank(source="srun", world_size=2, one_node=False), 9) == (
            "n2",
            "10163",
        )

    def test_mpi_over_several_nodes_needs_master_addr(self) -> None:
        with pytest.raises(TrainError, match="MASTER_ADDR"):
            train_llm.master_address({}, DistributedRank(source="Open MPI", world_size=4, one_node=False), 9)

    @pytest.mark.parametrize(
        ("nodelist", "first"),
        [("a", "a"), ("a,b", "a"), ("a[07-09,12],b", "a07"), ("r[1-2]n[3,5]x,q", "r1n3x"), ("", "")],
    )
    def test_the_first_host_of_a_node_list(self, nodelist: str, first: str) -> None:
        assert train_llm.first_host(nodelist) == first


class TestOrder:
    @given(count=st.integers(1, 700), seed=st.integers(0, 2**40), epoch=st.integers(0, 50))
    @settings(max_examples=60, deadline=None)
    def test_an_epoch_reads_every_sequence_once(self, count: int, seed: int, epoch: int) -> None:
        order = train_llm.shuffle(np.arange(count), count, seed, epoch)
        assert sorted(order.tolist()) == list(range(count))

    def test_epochs_and_seeds_have_different_orders(self) -> None:
        orders = {tuple(train_llm.shuffle(np.arange(50), 50, s, e).tolist()) for s in range(30) for e in range(30)}
        assert len(orders) == 900

    def test_every_sequence_may_come_at_every_position(self) -> None:
        orders = np.stack([train_llm.shuffle(np.arange(10), 10, seed, 0) for seed in range(2000)])
        counts = np.stack([np.bincount(orders[:, place], minlength=10) for place in range(10)])
        assert 140 < counts.min() <= counts.max() < 260  # 200 expected, 13 the standard deviation

    def test_neighbours_are_separated(self) -> None:
        order = train_llm.shuffle(np.arange(10_000), 10_000, 0, 0)
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05

    def test_a_batch_may_span_two_epochs(self) -> None:
        both = train_llm.sequences_at(np.arange(20), 10, seed=3)
        assert sorted(both[:10].tolist()) == sorted(both[10:].tolist()) == list(range(10))

    def test_an_order_of_a_billion_sequences_needs_no_memory(self) -> None:
        ids = train_llm.sequences_at(np.arange(10**9 - 2, 10**9 + 2), 10**9, seed=1)
        assert len(set(ids.tolist())) == 4


class TestBatching:
    @given(batch=st.integers(1, 40), world=st.sampled_from([1, 2, 3, 4, 8]), share=st.integers(1, 40))
    def test_passes_times_micro_batches_are_the_ranks_share(self, batch: int, world: int, share: int) -> None:
        plan = train_llm.plan_batches(batch, share * world, world)
        assert plan.micro <= batch
        assert plan.micro * plan.accumulation == plan.per_rank == share

    def test_by_default_every_rank_has_one_batch(self) -> None:
        assert train_llm.plan_batches(8, None, 4) == Batching(global_size=32, per_rank=8, micro=8)

    @pytest.mark.parametrize("size", [3, 1])
    def test_a_batch_that_cannot_be_divided_is_an_error(self, size: int) -> None:
        with pytest.raises(TrainError, match=f"{size} sequences cannot be divided over 2 ranks"):
            train_llm.plan_batches(8, size, 2)

    @given(
        world=st.sampled_from([1, 2, 4]), batch=st.integers(1, 8), start=st.integers(0, 9), seed=st.integers(0, 9)
    )  # fmt: skip
    @settings(deadline=None, max_examples=20)
    def test_any_number_of_ranks_reads_the_same_sequences(self, world: int, batch: int, start: int, seed: int) -> None:
        corpus, steps = corpus_of(31 * 4 + 1, 4, held_out=3), 3

        def read(world: int, batch: int) -> list[list[int]]:
            plan = train_llm.plan_batches(batch, 8, world)
            rows: list[list[int]] = []
            ranks = [
                train_llm.training_batches(corpus, plan, DistributedRank(r, r, world), seed, start * 8, pin=False)
                for r in range(world)
            ]
            for _ in range(steps):
                for rank in ranks:
                    for _ in range(plan.accumulation):
                        rows += next(rank)[1].tolist()
            return rows

        assert read(world, batch) == read(1, 8)

    def test_starting_later_skips_exactly_what_was_read(self) -> None:
        corpus, plan = corpus_of(101, 5, held_out=2), train_llm.plan_batches(4, 4, 1)
        whole = train_llm.training_batches(corpus, plan, DistributedRank(), 7, 0, pin=False)
        wanted = [next(whole)[1].tolist() for _ in range(9)][4:]
        later = train_llm.training_batches(corpus, plan, DistributedRank(), 7, 16, pin=False)
        assert [next(later)[1].tolist() for _ in range(5)] == wanted

    def test_the_prefetching_thread_passes_on_items_and_errors(self) -> None:
        def source() -> Iterator[int]:
            yield from (1, 2)
            raise OSError("disk")

        items = train_llm.prefetch(source(), torch.device("cpu"))
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(OSError, match="disk"):
            next(items)


class TestCorpus:
    def test_sequences_overlap_by_the_one_token_that_is_only_a_target(self) -> None:
        rows = corpus_of(13, 4).read(np.array([0, 2])).tolist()
        assert rows == [[0, 1, 2, 3, 4], [8, 9, 10, 11, 12]]

    @given(count=st.integers(9, 3000), seq_length=st.integers(2, 50), eval_size=st.integers(1, 300))
    def test_a_cut_corpus_holds_out_some_and_keeps_some(self, count: int, seq_length: int, eval_size: int) -> None:
        whole = Corpus(np.zeros(count, dtype=np.uint16), 10, "")
        if (count - 1) // seq_length < 2:
            with pytest.raises(TrainError, match="--seq-length"):
                train_llm.cut(whole, seq_length, eval_size)
            return
        cut = train_llm.cut(whole, seq_length, eval_size)
        assert cut.training >= 1
        assert 1 <= cut.held_out <= max(1, min(eval_size, cut.total // 20))
        assert cut.read(np.array([cut.total - 1])).shape == (1, seq_length + 1)

    def test_text_files_are_read_in_pieces_of_whole_lines(self, tmp_path: Path) -> None:
        file = tmp_path / "a.txt"
        file.write_text("".join(f"line {i}\n" for i in range(100)))
        pieces = [piece for batch in train_llm.read_text_files([str(file)], 50) for piece in batch]
        assert len(pieces) > 10
        assert all(piece.endswith("\n") for piece in pieces)
        assert "".join(pieces) == file.read_text()

    def test_a_name_that_is_not_a_path_has_no_files(self) -> None:
        assert train_llm.local_files("some/hub-name") == []

    def test_a_folder_of_two_kinds_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("x")
        (tmp_path / "b.jsonl").write_text("{}")
        with pytest.raises(TrainError, match="json and text"):
            train_llm.local_files(str(tmp_path))

    def test_a_file_of_another_kind_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "a.pdf").write_text("x")
        with pytest.raises(TrainError, match="found none"):
            train_llm.local_files(str(tmp_path / "a.pdf"))

    def test_a_changed_file_has_another_key(self, tmp_path: Path) -> None:
        file = tmp_path / "a.txt"
        file.write_text("x")
        args = arguments("--dataset-name", str(file))
        before = train_llm.corpus_key(args)
        file.write_text("xy")
        assert train_llm.corpus_key(args) != before
        assert train_llm.corpus_key(args) == train_llm.corpus_key(args)

    def test_embedded_names_need_no_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("asked for the hub"))
        train_llm.avoid_waiting_for_the_hub(["pydoc", "tiny-gpt2", str(Path(__file__))], {})

    def test_a_hub_that_does_not_resolve_is_skipped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise OSError

        monkeypatch.setattr("socket.getaddrinfo", fail)
        env: dict[str, str] = {}
        train_llm.avoid_waiting_for_the_hub(["some/model"], env)
        assert env == {"HF_HUB_OFFLINE": "1"}
        behind_proxy = {"https_proxy": "p"}
        train_llm.avoid_waiting_for_the_hub(["some/model"], behind_proxy)
        assert behind_proxy == {"https_proxy": "p"}


class TestBuildOnce:
    def test_it_builds_once(self, tmp_path: Path) -> None:
        calls: list[Path] = []
        for _ in range(3):
            folder = train_llm.build_once(tmp_path / "new" / "x", calls.append)
        assert folder.is_dir()
        assert len(calls) == 1

    def test_a_failed_build_leaves_no_folder(self, tmp_path: Path) -> None:
        def half(part: Path) -> None:
            (part / "half").touch()
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            train_llm.build_once(tmp_path / "x", half)
        assert not (tmp_path / "x").exists()
        train_llm.build_once(tmp_path / "x", lambda part: (part / "whole").touch())
        assert [file.name for file in (tmp_path / "x").iterdir()] == ["whole"]

    def test_of_two_nodes_without_a_common_lock_one_wins(self, tmp_path: Path) -> None:
        def slow(part: Path) -> None:
            (part / "mine").touch()
            (tmp_path / "x").mkdir()
            (tmp_path / "x" / "theirs").touch()

        train_llm.build_once(tmp_path / "x", slow)
        assert [file.name for file in (tmp_path / "x").iterdir()] == ["theirs"]


class TestSchedule:
    def test_the_rate_rises_to_its_highest_and_falls_to_its_lowest(self) -> None:
        args = arguments("--lr", "1.0", "--warmup-ratio", "0.1", "--min-lr-ratio", "0.2")
        rates = [train_llm.learning_rate(step, 100, args) for step in range(100)]
        assert rates[0] == pytest.approx(0.1)
        assert max(rates) == rates[9] == rates[10] == pytest.approx(1.0)
        assert rates[-1] == pytest.approx(0.2)
        assert rates[:10] == sorted(rates[:10])
        assert rates[10:] == sorted(rates[10:], reverse=True)

    @given(steps=st.integers(1, 300), warmup=st.floats(0, 1), low=st.floats(0, 1))
    def test_it_stays_within_its_bounds(self, steps: int, warmup: float, low: float) -> None:
        args = arguments("--lr", "2.0", "--warmup-ratio", str(warmup), "--min-lr-ratio", str(low))
        assert all(0 < train_llm.learning_rate(s, steps, args) <= 2.0 + 1e-9 or low == 0 for s in range(steps))


class TestModel:
    def test_only_matrices_decay(self) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        groups = train_llm.build_optimizer(model, arguments("--weight-decay", "0.3")).param_groups
        assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.3), (3, 0.0)]

    def test_the_embedded_model_is_the_same_for_the_same_seed(self) -> None:
        one, two, other = (train_llm.build_model(arguments("--seed", seed), 1024) for seed in ("1", "1", "2"))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))

    def test_attention_without_a_mask_is_causal(self) -> None:
        model = train_llm.build_model(arguments(), 1024).eval()
        tokens = torch.randint(0, 1024, (2, 16))
        changed = tokens.clone()
        changed[:, 9:] = 7
        with torch.no_grad():
            one, two = (model(input_ids=t).logits[:, :9] for t in (tokens, changed))
        assert torch.allclose(one, two, atol=1e-6)

    def test_the_loss_is_that_of_transformers(self) -> None:
        model = train_llm.build_model(arguments(), 1024).eval()
        tokens = torch.randint(0, 1024, (3, 33))
        with torch.no_grad():
            theirs = model(input_ids=tokens, labels=tokens).loss
            ours = train_llm.NextTokenLoss(model)(tokens)
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)

    def test_the_flops_are_those_of_the_formula(self) -> None:
        model = train_llm.build_model(arguments(), 1024)
        parameters = sum(p.numel() for p in model.parameters()) - 128 * 64
        assert train_llm.flops_per_token(model, 128) == 6 * parameters + 12 * 2 * 64 * 128

    def test_a_sequence_longer_than_the_model_is_refused(self) -> None:
        config = argparse.Namespace(max_position_embeddings=128)
        assert train_llm.longest_sequence(arguments(), config) == 128
        with pytest.raises(TrainError, match="128 positions"):
            train_llm.longest_sequence(arguments("--seq-length", "129"), config)


class TestCheckpoints:
    identity: ClassVar = {"hidden_size": 64, "vocabulary": 1024}

    @pytest.fixture(autouse=True)
    def closing(self) -> Iterator[None]:
        with contextlib.ExitStack() as self.stack:
            yield

    def open(self, folder: Path, **other: int) -> train_llm.Checkpoints:
        checkpoints = train_llm.Checkpoints(folder, 2, self.identity | other)
        self.stack.callback(checkpoints.close)
        return checkpoints

    def save(self, folder: Path, steps: range) -> train_llm.Checkpoints:
        checkpoints = self.open(folder)
        for step in steps:
            checkpoints.save(step, {"progress": {"step": step}, "model": {"w": torch.full((2,), float(step))}})
        checkpoints.wait()
        return checkpoints

    def test_the_newest_few_are_kept_and_the_newest_is_loaded(self, tmp_path: Path) -> None:
        checkpoints = self.save(tmp_path, range(1, 6))
        assert [file.name for file in checkpoints.all()] == ["step-00000004.pt", "step-00000005.pt"]
        state = checkpoints.load()
        assert state is not None
        assert state["progress"] == {"step": 5}
        assert state["model"]["w"].tolist() == [5.0, 5.0]

    def test_without_any_there_is_nothing_to_load(self, tmp_path: Path) -> None:
        assert self.save(tmp_path, range(0)).load() is None

    def test_a_save_does_not_change_with_its_source(self, tmp_path: Path) -> None:
        checkpoints, weights = self.open(tmp_path), torch.ones(1000)
        checkpoints.save(1, {"w": weights})
        weights.zero_()
        checkpoints.wait()
        state = checkpoints.load()
        assert state is not None
        assert state["w"].sum() == 1000

    @pytest.mark.parametrize("key", ["hidden_size", "vocabulary"])
    def test_a_checkpoint_of_another_model_is_an_error_that_names_it(self, tmp_path: Path, key: str) -> None:
        self.save(tmp_path, range(1, 2)).close()
        other = self.open(tmp_path, **{key: 7})
        with pytest.raises(TrainError, match=rf"step-00000001\.pt.*{key} is {self.identity[key]}, this run's is 7"):
            other.load()

    def test_an_unreadable_checkpoint_is_named(self, tmp_path: Path) -> None:
        checkpoints = self.save(tmp_path, range(1, 2))
        checkpoints.all()[0].write_bytes(b"PK not really")
        with pytest.raises(TrainError, match=r"step-00000001\.pt cannot be read"):
            checkpoints.load()

    def test_an_experiment_has_one_run_at_a_time(self, tmp_path: Path) -> None:
        first = self.save(tmp_path / "checkpoints", range(0))
        with pytest.raises(TrainError, match="in use by another run"):
            self.open(tmp_path / "checkpoints")
        first.close()
        self.open(tmp_path / "checkpoints")

    def test_leftovers_of_a_killed_save_are_removed(self, tmp_path: Path) -> None:
        (tmp_path / "step-00000009.part").touch()
        assert self.save(tmp_path, range(0)).all() == []
        assert not list(tmp_path.glob("*.part"))

    def test_a_failed_write_is_reported(self, tmp_path: Path) -> None:
        checkpoints = self.save(tmp_path / "x", range(0))
        checkpoints.save(1, {"unpicklable": lambda: 0})
        with pytest.raises(Exception, match="pickle"):
            checkpoints.wait()

    def test_host_buffers_are_reused(self) -> None:
        state: dict[str, Any] = {"a": torch.ones(3), "b": [{"c": 1}], "d": 2}
        first = train_llm.to_host(state)
        state["a"].mul_(5)
        second = train_llm.to_host(state, first)
        assert second["a"] is first["a"]
        assert second == {"a": first["a"], "b": [{"c": 1}], "d": 2}
        assert second["a"].tolist() == [5, 5, 5]


class TestLogging:
    @pytest.fixture(autouse=True)
    def one_process(self) -> Iterator[None]:
        dist: Any = torch.distributed
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()

    def test_a_window_returns_every_step(self) -> None:
        window = train_llm.Window(4, torch.device("cpu"), [[3.0, 1.0]])
        window.add(torch.tensor(2.0), torch.tensor(0.5))
        assert window.means(7) == [[3.0, 1.0], [2.0, 0.5]]

    @pytest.mark.parametrize(("loss", "norm", "named"), [("nan", "1", "loss is nan"), ("1", "inf", "norm is inf")])
    def test_a_value_that_is_not_finite_is_an_error_with_step_and_rank(self, loss: str, norm: str, named: str) -> None:
        window = train_llm.Window(4, torch.device("cpu"), [])
        for pair in ((1.0, 1.0), (float(loss), float(norm)), (float("nan"), float("nan"))):
            window.add(*map(torch.tensor, pair))
        with pytest.raises(TrainError, match=rf"{named} at step 11 on rank 0"):
            window.means(12)

    def test_an_error_on_rank_0_is_raised_on_all_ranks(self) -> None:
        def fail() -> None:
            raise TrainError("no space")

        assert train_llm.on_rank_zero(lambda: 3) == 3
        with pytest.raises(TrainError, match="no space"):
            train_llm.on_rank_zero(fail)

    def test_a_signal_is_agreed_upon_after_the_step(self) -> None:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            save = train_llm.SaveSignal()
            with save.agree():
                signal.raise_signal(signal.SIGUSR1)
            flags = []
            for _ in range(2):
                with save.agree():
                    pass
                flags.append((int(save.flag), save.stops))
            assert flags == [(signal.SIGUSR1, False), (0, False)]
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGUSR1)
            with save.agree():
                pass
            assert (int(save.flag), save.stops) == (signal.SIGTERM, True)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def test_a_stopwatch_divides_the_time_of_a_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times = iter([0.0, 0.1, 0.4, 5.4, 5.5, 5.8])
        monkeypatch.setattr("time.perf_counter", lambda: next(times))
        watch = train_llm.Stopwatch(torch.device("cpu"))
        for part in ("data", "update", "", "data", "update"):
            watch.mark(part)
        assert watch.per_step("update") == pytest.approx({"data": 100.0, "update": 300.0})

    def test_no_time_is_lost_between_two_log_lines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times = iter([0.0, 1.0, 1.5, 2.5])
        monkeypatch.setattr("time.perf_counter", lambda: next(times))
        watch = train_llm.Stopwatch(torch.device("cpu"))
        watch.mark("update")
        watch.next_line()
        watch.mark("log")
        watch.mark("update")
        assert watch.per_step("update") == pytest.approx({"log": 500.0, "update": 1000.0})

    def test_a_log_line_is_also_json(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        log = train_llm.Log(tmp_path, "none", 0, 40)
        log.put(10, {"loss": 5.25, "lr": 1e-3, "hidden": 1.0}, train_llm.TRAIN_COLUMNS)
        log.close()
        words = capsys.readouterr().out.split()
        assert dict(word.split("=") for word in words) == {"step": "10/40", "loss": "5.2500", "lr": "1.00e-03"}
        (line,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
        assert line["step"] == 10
        assert line["loss"] == 5.25
        assert line["time"] > 0

    def test_a_tracker_needs_an_experiment_and_its_package(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(TrainError, match="--experiment-name"):
            train_llm.open_tracker("tensorboard", None, 0)
        for package in ("wandb", "mlflow"):
            monkeypatch.setitem(sys.modules, package, None)
            with pytest.raises(TrainError, match=f"pip install {package}"):
                train_llm.open_tracker(package, tmp_path, 0)


class TestArguments:
    @pytest.mark.parametrize(
        "argv",
        [("--batch-size", "0"), ("--lr", "nan"), ("--lr", "inf"), ("--lr", "-1"), ("--seq-length", "1"),
         ("--max-steps", "x"), ("--dtype", "float16"), ("--tracker", "print"), ("--local_rank", "-1")],
    )  # fmt: skip
    def test_a_wrong_value_is_an_error_that_names_the_option(
        self, argv: tuple[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as exit_:
            arguments(*argv)
        assert exit_.value.code == 2
        assert argv[0] in capsys.readouterr().err

    def test_the_tutorials_arguments_are_accepted(self) -> None:
        line = (
            "--experiment-name x --dataset-name d --model-name m --save-dir s --seed 1 --num-epochs 2 --lr 3e-4 "
            "--batch-size 4 --log-freq 5 --ckpt-freq 6 --dataset-cache-root c --local_rank 0"
        )
        args = arguments(*line.split())
        assert (args.lr, args.batch_size, args.ckpt_freq, args.local_rank) == (3e-4, 4, 6, 0)

    def test_help_gives_every_default_in_groups(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            arguments("--help")
        text = " ".join(capsys.readouterr().out.split())
        for words in ("what to train on what:", "how much:", "(default: 8)", "data order and dropout (default: 0)"):
            assert words in text
        assert "default: None" not in text

    def test_a_train_error_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        train_llm.print_one_line(TrainError, TrainError("too big"), None)
        assert capsys.readouterr().err == "train_llm.py: error: too big\n"
