"""Which machine this is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from torchfab.remote.host import identity

PROGRAM = "from torchfab.remote.host import identity; print(identity.identify()['id'])"


def identity_of(*prefix: str, **env: str) -> str:
    argv = [*prefix, sys.executable, "-c", PROGRAM]
    return subprocess.run(argv, capture_output=True, text=True, check=True, env=env or None).stdout.strip()


def test_two_processes_of_a_machine_have_one_identity() -> None:
    assert identity_of() == identity.identify()["id"]


def test_another_home_is_another_identity() -> None:
    assert identity_of(HOME="/elsewhere") != identity_of(HOME="/somewhere")


@pytest.mark.parametrize(
    ("environ", "port"),
    [
        ({"SSH_CONNECTION": "10.0.0.9 51000 10.0.0.1 2222"}, 2222),
        ({}, None),
        ({"SSH_CONNECTION": ""}, None),
        ({"SSH_CONNECTION": "a b c x"}, None),
    ],
)
def test_the_port_of_sshd_is_that_of_the_session(environ: dict[str, str], port: int | None) -> None:
    assert identity.ssh_port(environ) == port
