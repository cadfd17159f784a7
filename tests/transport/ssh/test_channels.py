"""What a conversation goes over."""

from __future__ import annotations

import fcntl
import os
import resource

import pytest

from torchfab.core.specs import Node
from torchfab.transport.session import Session
from torchfab.transport.ssh.channels import LocalChannel

HIGH = 1500  # above what select(2) takes


def test_this_machine_is_talked_to_beside_a_thousand_open_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= HIGH + 1:
        pytest.skip(f"no more than {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 10), hard))
    pipe = LocalChannel()
    try:
        for name, mode in (("stdin", "wb"), ("stdout", "rb")):
            with getattr(pipe, name) as file:
                high = fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH)
            setattr(pipe, name, os.fdopen(high, mode))
        session = Session(Node(0, "localhost"), pipe)
        assert session.take(0.0) == []
    finally:
        pipe.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
