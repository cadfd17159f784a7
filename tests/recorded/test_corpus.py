"""Every job of the corpus has its cause, its first rank and its kind."""

from __future__ import annotations

import pytest

from tests.recorded.corpus import BATCHES, Case, cases, figures
from torchfab.why import report
from torchfab.why.causes import Kind

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
