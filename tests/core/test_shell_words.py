"""Words that are meant for a shell, and commands that only run another one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchfab.core import shell_words
from torchfab.core.errors import UsageError


@pytest.mark.parametrize(
    ("words", "inner"),
    [
        ("nice -n 5 python a.py", "python a.py"),
        ("timeout -k 5 60 python a.py", "python a.py"),
        ("env -u X A=1 B=2 python a.py", "python a.py"),
        ("uv run --with torch python a.py", "python a.py"),
        ("nohup nice -- env A=1 python a.py", "python a.py"),
        ("python nice a.py", "python nice a.py"),
        ("uv pip install a", "uv pip install a"),
    ],
)
def test_the_command_that_runs_in_the_end_is_found(words: str, inner: str) -> None:
    assert list(shell_words.without_wrappers(words.split())) == inner.split()


def test_of_a_shells_command_the_last_one_is_taken() -> None:
    assert shell_words.without_wrappers(["bash", "-lc", "cd x && A=1 python 'a b.py'"]) == ["python", "a b.py"]
    broken = ["bash", "-c", "python 'a.py"]
    assert shell_words.without_wrappers(broken) is broken


def test_the_value_of_a_secret_is_not_in_the_line_to_write() -> None:
    with pytest.raises(UsageError) as caught:
        shell_words.check(["HF_TOKEN=hf_x", "LR=1 2", "python", "a.py"], is_file=False)
    assert "--env HF_TOKEN --env 'LR=1 2' -- python a.py" in str(caught.value)
    assert "hf_x" not in str(caught.value)


def test_a_file_may_have_the_name_of_an_assignment() -> None:
    shell_words.check(["A=1"], is_file=True)


@given(st.lists(st.sampled_from(["env", "-u", "--", "bash", "-c", "uv", "run", "A=1", "a b", "'", ""]), max_size=8))
def test_any_words_have_an_inner_command(words: list[str]) -> None:
    found = list(shell_words.without_wrappers(words))
    assert len(found) <= max(len(words), 2)
