"""Variables of a node's login environment that ranks do not get."""

from __future__ import annotations

import pytest

from torchfab.core import environment
from torchfab.remote.host import login_environment


def test_what_users_may_not_give_is_not_inherited_from_a_login_shell_either() -> None:
    reserved = [*environment.RESERVED, "PET_STANDALONE", "PET_RDZV_CONF"]
    ours = {environment.JOB_ID, environment.NODE_RANK}
    assert {name for name in reserved if not login_environment.is_of_launchers(name)} == ours
    assert not any(login_environment.is_inherited(name) for name in reserved if name not in ours)


@pytest.mark.parametrize("name", ["PATH", "HOME", "NCCL_DEBUG", "TORCHELASTIC_ENABLE_FILE_TIMER", "PETS", "RANKS"])
def test_other_variables_are_inherited(name: str) -> None:
    assert login_environment.is_inherited(name)
    assert not login_environment.is_of_launchers(name)


@pytest.mark.parametrize("name", ["SSH_TTY", "TMUX", "PWD"])
def test_those_of_the_session_are_dropped_without_a_word(name: str) -> None:
    assert not login_environment.is_inherited(name)
    assert not login_environment.is_of_launchers(name)
