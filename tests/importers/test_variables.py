"""Which variables of another launch file go into `--env`."""

from __future__ import annotations

import pytest

from torchfab.importers import variables
from torchfab.importers.draft import Draft, dynamic


def test_a_variable_is_carried_over_and_its_first_value_stays() -> None:
    draft = Draft("a script")
    variables.carry(draft, 1, "NCCL_DEBUG", "INFO")
    variables.carry(draft, 2, "NCCL_DEBUG", "WARN")
    assert (draft.env, draft.skipped) == ({"NCCL_DEBUG": "INFO"}, [])


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("MASTER_PORT", "29500", "fab sets it"),
        ("RANK", "3", "the launcher sets it for every rank"),
        ("PET_NNODES", "2", "torchrun would read it as a flag"),
        ("HF_TOKEN", "hf_x", "a secret: export it"),
        ("PATH", f"/opt:{dynamic('$PATH')}", "it extends the node's own value"),
        ("OUT", dynamic("$(date)"), "its value is not known"),
    ],
)
def test_what_is_not_carried_over_is_listed_with_its_reason(name: str, value: str, reason: str) -> None:
    draft = Draft("a script")
    variables.carry(draft, 7, name, value)
    (skipped,) = draft.skipped
    assert (draft.env, skipped.number) == ({}, 7)
    assert reason in skipped.reason
    assert "hf_x" not in skipped.text


def test_the_value_of_a_secret_is_not_shown() -> None:
    assert variables.shown("HF_TOKEN", "HF_TOKEN=hf_x") == "HF_TOKEN=…"
    assert variables.shown("LR", "LR=1") == "LR=1"
