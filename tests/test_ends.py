"""What the matrix of ends takes for a rank that has not saved as it should."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.integration import ends


def note(out: Path, rank: int, **notes: str) -> None:
    for name, text in notes.items():
        (out / f"{rank}.{name}").write_text(text)


def save(out: Path, rank: int, lost: str = "") -> None:
    note(out, rank, json=json.dumps({"kind": rank, "lost": lost, "seconds": 2.0}), done="9.0 \n")


def problems(out: Path, number: int = signal.SIGTERM) -> list[str]:
    return ends.problems_of(ends.read_ends(out, 2), number).get(1, [])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder in which rank 0 has saved, and rank 1 has its loaders ended after it."""
    save(tmp_path, 0)
    save(tmp_path, 1)
    note(tmp_path, 0, signals="5.0 15\n")
    note(tmp_path, 1, signals="5.0 15\n", loaders="9.5 \n")
    return tmp_path


def test_a_rank_that_saved_after_one_signal_is_right(out: Path) -> None:
    assert problems(out) == []
    note(out, 1, signals="5.0 10\n")
    assert problems(out, signal.SIGUSR1) == []
    assert problems(out) == ["SIGTERM came 0 times"]


def test_two_signals_are_too_many(out: Path) -> None:
    note(out, 1, signals="5.0 15\n6.0 15\n")
    assert problems(out) == ["SIGTERM came 2 times"]
    note(out, 1, signals="5.0 15\n6.0 10\n")
    assert problems(out) == ["got SIGTERM, SIGUSR1"]


def test_a_loader_that_was_signaled_before_its_rank_ended_is_named(out: Path) -> None:
    note(out, 1, loaders="8.0 \n9.5 \n")
    assert problems(out) == ["a loader got SIGTERM before its rank had ended"]
    save(out, 1, lost="a loader had ended")
    assert problems(out)[0] == "a loader had ended"


def test_a_rank_without_a_whole_file_has_not_saved(out: Path) -> None:
    (out / "1.json").unlink()
    assert problems(out) == ["not saved"]


def test_a_rank_without_a_handler_notes_nothing(tmp_path: Path) -> None:
    assert ends.RankEnd(ends.PLAIN, None, (), (), None).problems() == []
