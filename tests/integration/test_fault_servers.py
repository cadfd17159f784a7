"""The fault matrix: SSH servers that accept a connection and stall at one step; and a slow node."""

from __future__ import annotations

import time

import pytest

from tests.integration.fab import Fab
from tests.integration.faults import Matrix
from tests.integration.stalling_sshd import STEPS, stalling_server

QUICK = {"prepare_timeout_s": 5, "start_timeout_s": 5, "answer_timeout_s": 5}
TOLD = {
    "banner": "within 2 s: it accepted the connection, but sent no SSH banner",
    "key exchange": "within 2 s: it did not finish the key exchange",
    "login": "within 2 s: it did not finish the login",
    "channel": "within 2 s: it accepted the login, but opened no channel",
    "command": "within 2 s: it opened a channel, but started no program",
    "input": "within 5 s: the connection is open, but the host reads nothing that is sent",
    "output": "the connection is up, but torchfab's program there gave no answer within 5 s",
}


@pytest.mark.parametrize("step", STEPS)
def test_a_stalling_server_is_named_with_its_step_and_delays_no_other(fab: Fab, matrix: Matrix, step: str) -> None:
    row = matrix.row(f"an SSH server stalls: {step}", fab)
    row.without(2, 3)
    config = "Host stalling\n    HostName 127.0.0.1\n    Port {}\n    StrictHostKeyChecking no\n"
    known = "    UserKnownHostsFile /dev/null\n    IdentitiesOnly yes\n    IdentityFile {}\n"
    with stalling_server(step) as port:
        text = config.format(port) + known.format(fab.cluster.key) + fab.cluster.ssh_config.read_text()
        words = ("-S", str(fab.write("config", text)), "-t", "2")
        gpus = fab.write("gpus", "node1\nstalling address=127.0.0.1\n")
        begun = time.monotonic()
        done = fab(*words, "launch-per-gpu", "--gpufile", str(gpus), "--", "light.py", "60", config=QUICK)
    assert time.monotonic() - begun < 30
    row.fails_with(done, TOLD[step], "stalling")
    assert "1 of 2 hosts failed; nothing was started" in done.stderr, done
    row.nothing_left(within_s=10, folders=True)
