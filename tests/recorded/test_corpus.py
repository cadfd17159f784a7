"""Every job of the corpus has its cause, its first rank and its kind."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.recorded.corpus import BATCHES, Case, cases, figures
from torchfab.remote.job import log_files, log_search
from torchfab.why import report
from torchfab.why.causes import Kind

STEP = b"2026-01-02 10:00:00 step 17 loss 2.31 grad_norm 0.31 tokens/s 10234\n"
FRAME = b"frame #12: c10::detail::torchCheck(char const*) + 0x64 (0x7f2b4c in /opt/conda/lib/libc10.so)\n"
ALL = [case for batch in BATCHES for case in cases(batch)]


@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
def test_cause_first_rank_and_kind_are_found(case: Case) -> None:
    found = case.diagnose()
    assert found.cause.kind.name.lower() == case.kind, found.cause
    assert case.is_first(found), found.first
    assert case.is_named(found), found.cause
    assert found.bad_nodes == () or found.cause.kind is Kind.NODE
    assert found.certainty
    assert found.evidence
    assert all(line.text == " ".join(line.text.split()) for line in found.evidence)
    assert "evidence" in report.render(found)


def test_corpus_has_at_least_150_jobs_with_different_names() -> None:
    assert len(ALL) >= 150
    assert len({case.name for case in ALL}) == len(ALL)


def test_figures_have_a_line_for_each_kind() -> None:
    lines = figures("known")
    assert [line.split()[0] for line in lines[2:-1]] == ["killed", "memory", "network", "node", "script"]


def searched(text: str, folder: Path) -> str:
    """Return what the search of a node sends of a text between the lines of a training and a dump of frames."""
    (folder / "stderr.log").write_bytes(STEP * 1500 + text.encode() + FRAME * 1500)
    log, times = log_files.LogFile(str(folder), "stderr.log"), log_files.WriteTimes(str(folder))
    found = log_search.search(log, times, log_search.Budget(32 * 1024, time.monotonic() + 60))
    return "".join(part["text"] for part in found["parts"])


WITHOUT_TRACEBACK = [case for case in ALL if not any("Traceback" in text for _, _, text in case.parts)]


@pytest.mark.parametrize("case", WITHOUT_TRACEBACK, ids=[case.name for case in WITHOUT_TRACEBACK])
def test_cause_is_found_by_the_search_of_a_node_before_a_dump_of_frames(case: Case, tmp_path: Path) -> None:
    parts = [
        (kind, at, searched(text, tmp_path) if text and kind in ("rank", "agent") else text)
        for kind, at, text in case.parts
    ]
    found = replace(case, parts=tuple(parts)).diagnose()
    assert case.is_right(found), found.cause
