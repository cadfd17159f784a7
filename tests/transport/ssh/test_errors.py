"""What a failed connection is reported as, where no server is needed to make it fail."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest
from paramiko.ssh_exception import NoValidConnectionsError

from torchfab.transport.ssh.errors import explain

CLIENT = SimpleNamespace(get_transport=lambda: None, unreadable_keys={})  # it has not connected
CONNECTION = SimpleNamespace(
    host="10.0.0.9", port=22, user="me", timeout_s=10.0, step_timeout=None, proxy=None, client=CLIENT
)


@pytest.mark.parametrize("code", [errno.EHOSTUNREACH, errno.ENETUNREACH])
def test_an_address_without_a_route_is_named_with_a_fix(code: int) -> None:
    cause = OSError(code, os.strerror(code))
    for error in (cause, NoValidConnectionsError({("10.0.0.9", 22): cause})):
        problem = explain(error, CONNECTION, 3.0)
        assert problem.message == f"no connection to 10.0.0.9 port 22: {os.strerror(code)}"
        assert problem.fix.startswith("check that the node is up, that this is its address")
