"""Threads and state that must not grow with the number of hosts."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.specs import Node
from torchfab.transport import session_pool, ssh
from torchfab.transport.messages.doctor import ClockRequest
from torchfab.transport.session_pool import Response, request_all
from torchfab.transport.ssh import connect


def test_fan_out_is_bounded_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before, most = set(threading.enumerate()), [0]
    open_session = ssh.open_session

    def started() -> set[threading.Thread]:
        return set(threading.enumerate()) - before

    def counted(*words: Any) -> Any:
        most[0] = max(most[0], len(started()))
        return open_session(*words)

    monkeypatch.setattr(session_pool, "open_session", counted)
    nodes = [Node(rank, "localhost") for rank in range(12)]
    answers = dict(request_all(nodes, ConnectionSettings(fanout=3), lambda _: ClockRequest(), 20))
    assert [type(answers.get(node)) for node in nodes] == 12 * [Response]
    assert most[0] <= 3
    for thread in started():
        thread.join(60)
    assert not started()


def test_the_state_per_host_is_small_and_separate(tmp_path: Any) -> None:
    # Fabric's Config.clone reads the ssh config once more into the original: the n-th host had it n times.
    config = tmp_path / "config"
    config.write_text("Host *\n  User me\n")
    nodes = [Node(rank, f"n{rank}") for rank in range(20)]
    made = connect.connections(nodes, ConnectionSettings(ssh_config=str(config)))
    configs = [each.config for each in made]
    assert len({id(each) for each in configs}) == 20
    assert all(not each.base_ssh_config._config[1:] for each in configs)
    assert {each.user for each in made} == {"me"}
