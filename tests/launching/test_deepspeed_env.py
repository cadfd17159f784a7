"""The note about a `.deepspeed_env` beside the script: the variables to set, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.launching import deepspeed_env

FORWARD = ["NCCL_*", "WANDB_*"]
TEXT = """
NCCL_IB_DISABLE=1
export NCCL_SOCKET_IFNAME="eth0, eth1"
PATH=/usr/bin:/home/me/secret-project
WANDB_API_KEY=0123456789

AWS_ACCESS_KEY_ID=abc
not a variable
"""


def test_the_note_has_the_flags_of_missing_variables(tmp_path: Path) -> None:
    (tmp_path / ".deepspeed_env").write_text(TEXT)
    assert deepspeed_env.describe_unread(["train.py"], str(tmp_path), FORWARD, ()) == (
        ".deepspeed_env is not read; to set its variables: --env NCCL_IB_DISABLE=1 "
        "--env NCCL_SOCKET_IFNAME='eth0, eth1'; 3 other variables in it are not for the ranks"
    )


def test_neither_other_names_nor_secrets_are_shown(tmp_path: Path) -> None:
    (tmp_path / ".deepspeed_env").write_text(TEXT)
    note = deepspeed_env.describe_unread(["train.py"], str(tmp_path), FORWARD, ())
    assert not any(word in note for word in ("WANDB", "0123456789", "PATH", "AWS", "abc"))


def test_there_is_no_note_if_the_launch_sets_all_variables(tmp_path: Path) -> None:
    (tmp_path / ".deepspeed_env").write_text(TEXT)
    assert (
        deepspeed_env.describe_unread(["a.py"], str(tmp_path), FORWARD, {"NCCL_IB_DISABLE", "NCCL_SOCKET_IFNAME"}) == ""
    )


def test_a_file_without_forwarded_variables_is_named() -> None:
    note = deepspeed_env.note({"PATH": "x"}, FORWARD, ())
    assert note.startswith(".deepspeed_env is not read; torchfab.forward matches none of its variables; 1 other")


@pytest.mark.parametrize("script", [["src/train.py"], ["train.py"], ["-m", "my.train"]])
def test_the_file_is_found_beside_the_script_and_in_the_working_directory(tmp_path: Path, script: list[str]) -> None:
    (tmp_path / "src").mkdir()
    assert deepspeed_env.find(script, str(tmp_path)) is None
    folder = tmp_path / ("src" if "/" in script[0] else "")
    (folder / ".deepspeed_env").touch()
    assert deepspeed_env.find(script, str(tmp_path)) == folder / ".deepspeed_env"


def test_at_most_eight_variables_are_listed() -> None:
    note = deepspeed_env.note({f"NCCL_{number}": "1" for number in range(12)}, FORWARD, ())
    assert note.count("--env") == 8
    assert note.endswith("and 4 more")


@fuzzed(st.text(max_size=200))
def test_any_text_is_parsed(text: str) -> None:
    deepspeed_env.note(deepspeed_env.parse(text), FORWARD, ())
