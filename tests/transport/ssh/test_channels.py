"""Channels to torchfab's program."""

from __future__ import annotations

import fcntl
import os
import resource

import pytest

from torchfab.core.specs import Node
from torchfab.transport.session import Session
from torchfab.transport.ssh.channels import LocalChannel

HIGH = 1500  # above the limit of select(2)


def test_local_channel_works_with_1500_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= HIGH + 1:
        pytest.skip(f"no more than {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 10), hard))
    channel = LocalChannel()
    try:
        for name, mode in (("stdin", "wb"), ("stdout", "rb")):
            with getattr(channel, name) as file:
                high = fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH)
            setattr(channel, name, os.fdopen(high, mode))
        session = Session(Node(0, "localhost"), channel)
        assert session.read_frames(0.0) == []
    finally:
        channel.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
