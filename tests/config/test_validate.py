"""Settings of fabric.yaml: valid ones pass, an invalid one is an error that names it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from torchfab.config import defaults
from torchfab.config.validate import check
from torchfab.core.errors import UsageError

ROOT = Path(__file__).parents[2]
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text() | st.integers())


def settings() -> dict[str, Any]:
    """Return the settings of this repository's own fabric.yaml."""
    return dict(yaml.safe_load((ROOT / "fabric.yaml").read_text())["torchfab"])


def test_the_settings_of_this_repository_are_valid() -> None:
    check(settings())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(("stall_s", value, "a number of seconds") for value in (-1, "300", None, float("inf"), True)),
        ("fanout", 0, "a number of at least 1"),
        ("restarts", 1.5, "a number of at least 0"),
        ("connect_timeout_s", 0, "a number of seconds above 0"),
        ("hostfile", " ", "a text"),
        ("script", "train.py", "a list of texts"),
        *(("probe", value, "true or false") for value in ("yes", 1, None)),
        *(("stacks_signal", value, "SIGUSR1, SIGUSR2, or empty for none") for value in ("SIGKILL", "usr2", None, 12)),
    ],
)
def test_an_invalid_value_is_an_error_with_setting_and_fix(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        check({**settings(), name: value})
    assert caught.value.message == f"torchfab.{name} must be {expected}, got {value!r}"
    assert f"FABRIC_TORCHFAB_{name.upper()}" in caught.value.fix


@given(st.sampled_from(sorted(settings())), VALUES)
def test_any_value_is_valid_or_a_usage_error(name: str, value: Any) -> None:
    with contextlib.suppress(UsageError):
        check({name: value})


def test_the_clones_file_changes_only_the_script_and_the_records() -> None:
    sections = defaults.sections()
    sections["torchfab"] |= {"script": ["train_llm.py"], "records": "jobs"}
    assert yaml.safe_load((ROOT / "fabric.yaml").read_text()) == sections
