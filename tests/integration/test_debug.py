"""`fab --debug` on real hosts: it shows at which step a login failed and why, and no secret."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.integration.fab import Done, Fab
from tests.integration.faults_injected import server, ssh_config

LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} (\S+(?: via \S+)?) +(\w+): (.*)")
KEY = r"ssh-ed25519 SHA256:[\w+/]{43}"


@pytest.fixture
def job(fab: Fab) -> Fab:
    """A `fab` with a job that runs on both hosts."""
    launched = fab(*fab.launch("--name", "x", gpus=True))
    assert launched.rc == 0, launched
    assert not LINE.search(launched.stderr), launched  # without --debug
    return fab


def steps(done: Done, host: str) -> list[str]:
    """Return torchfab's own lines about a host, as `package: text`."""
    found = (LINE.fullmatch(line) for line in done.stderr.splitlines())
    return [f"{line[2]}: {line[3]}" for line in found if line and line[1] == host and line[2] != "paramiko"]


def shows(done: Done, host: str, *patterns: str) -> None:
    """Assert that lines about a host match these patterns, in this order."""
    lines = iter(steps(done, host))
    for pattern in patterns:
        assert any(re.match(pattern, line) for line in lines), (pattern, done)


def config(fab: Fab, *lines: str) -> str:
    """Write an ssh config in which these options of node2 come first; give its path for `fab -S`."""
    own = "\n    ".join(["Host node2", *lines])
    return str(fab.write("ssh_config", f"{own}\n{fab.cluster.ssh_config.read_text()}"))


def test_a_healthy_login_shows_every_step_in_order(job: Fab) -> None:
    done = job("status", "x", "--debug")
    assert done.rc == 0, done
    known, key = re.escape(str(job.cluster.known_hosts)), re.escape(str(job.cluster.key))
    shows(
        *(done, "node2"),
        r"transport: route: root@10\.77\.\S+ port 22, directly, .* hostname \S+:\d+, ",
        rf"transport: private keys: {key}$",
        "transport: agent: ",
        r"transport: resolve: looking up 10\.77\.",
        r"transport: TCP: connecting to 10\.77\.\S+ port 22$",
        r"transport: TCP: connected to 10\.77\.\S+ port 22, from ",
        "transport: banner: ",
        r"transport: key exchange: done; the server is SSH-2\.0-OpenSSH\S*",
        rf"transport: host key: {KEY} for 10\.77\.\S+ is known from {known}:2$",
        rf"transport: authentication: offering {KEY} \({key}\) as root$",
        "transport: authentication: accepted$",
        "transport: channel: open; starting the interpreter python3 there$",
        r"transport: request 1: status, \d+ bytes$",
        r"transport: answer to request 1: status, \d+ bytes, after \d\.\d{3} s$",
        "transport: closing the connection$",
    )
    assert re.search(r" node2 +paramiko: Authentication \(publickey\) successful!", done.stderr), done


def test_a_host_that_does_not_answer_fails_at_tcp(job: Fab) -> None:
    job.cluster.partition(1)
    try:
        done = job("-t", "1", "--debug", "status", "x")
    finally:
        job.cluster.heal(1)
    failed = r"transport: FAILED at step TCP after \d+\.\d{3} s: (timed out|.*No route to host)"
    shows(done, "node2", "transport: TCP: connecting to ", failed, "transport: no session: no (answer|connection) ")
    shows(done, "node1", "transport: answer to request 1: status")


def test_a_port_without_a_listener_fails_at_tcp(job: Fab) -> None:
    done = job("-S", config(job, "Port 2222"), "--debug", "status", "x")
    failed = r"transport: FAILED at step TCP after .*: 10\.77\.\S+ port 2222: \[Errno 111\] Connection refused$"
    session = r"transport: no session: 10\.77\.\S+ port 2222 refused the connection; fix: check that sshd runs there"
    shows(done, "node2", r"transport: route: .* port 2222, .* port \S+ssh_config:2, ", failed, session)


def test_keys_that_are_not_accepted_fail_at_authentication(job: Fab) -> None:
    key, absent = job.workdir / "stranger", job.workdir / "absent"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    lines = (f"IdentityFile {key}", f"IdentityFile {absent}", "IdentitiesOnly yes")
    text = re.sub(r"IdentityFile .*", "", job.cluster.ssh_config.read_text())
    path = job.write("ssh_config", "\n    ".join(["Host node2", *lines]) + "\n" + text)
    done = job("-S", str(path), "--debug", "status", "x")
    shows(
        *(done, "node2"),
        rf"transport: private keys: {re.escape(str(key))}, \S+absent \(there is no such file\)$",
        rf"transport: authentication: offering {KEY} \({re.escape(str(key))}\) as root$",
        "transport: authentication: the server does not accept this key$",
        "transport: FAILED at step authentication after ",
        r"transport: no session: root@10\.77\.\S+ was refused: none of your keys is accepted there",
    )


def test_an_unknown_host_key_fails_with_the_files_searched(job: Fab) -> None:
    known = job.write("known", "")
    done = job("-S", ssh_config(job, job.cluster.known_hosts, known), "--debug", "status", "x")
    new = rf"transport: host key: {KEY} for 10\.77\.\S+ is new: no line of {re.escape(str(known))} .*Checking yes$"
    shows(done, "node2", new, "transport: FAILED at step host key after .*: its host key is not known")


def test_a_silent_server_fails_at_the_banner(fab: Fab) -> None:
    with server() as port:
        done = fab("-t", "1", "-H", f"127.0.0.1:{port}", "doctor", "--debug")
    shows(done, f"127.0.0.1:{port}", "transport: TCP: connected to ", "transport: FAILED at step banner after ")


def test_the_login_to_a_jump_host_is_told_apart(job: Fab) -> None:
    done = job("-S", config(job, "ProxyJump node1"), "--debug", "status", "x")
    assert done.rc == 0, done
    shows(done, "node2 via node1", "transport: route: ", "transport: authentication: accepted$")
    shows(done, "node2", r"transport: jump host: opening a channel from 10\.77\.\S+ to 10\.77\.\S+ port 22$")


def test_of_a_proxy_command_only_its_program_is_logged(job: Fab) -> None:
    path = config(job, "ProxyCommand sh -c 'echo no way >&2; exit 3' --proxy-auth me:pass-word %h")
    done = job("-S", path, "--debug", "status", "x")
    starting = rf"transport: ProxyCommand: starting sh \({re.escape(path)}:2\)$"
    shows(done, "node2", starting, r"transport: ProxyCommand: pid \d+ ended: no way$", "transport: FAILED at step ")
    assert "pass-word" not in done.stdout + done.stderr, done


SECRETS = {"HF_TOKEN": "forwarded-9d02ae", "MY_API_KEY": "given-b7f1c6", "MY_PASSWORD": "given-0aa1f3"}
SCRIPT = "import os, time\nprint(os.environ['HF_TOKEN'], os.environ['MY_API_KEY'], flush=True)\ntime.sleep(60)\n"


def test_no_secret_of_a_job_is_in_the_log(fab: Fab) -> None:
    fab.write("secret.py", SCRIPT)
    given = [word for name in ("MY_API_KEY", "MY_PASSWORD") for word in ("--env", f"{name}={SECRETS[name]}")]
    proxy = {"https_proxy": "http://me:in-the-url-77@proxy:3128", "HF_TOKEN": SECRETS["HF_TOKEN"]}
    launch = fab.launch("--name", "x", *given, "--", "secret.py", gpus=True)
    launched = fab("--debug", *launch, env=proxy)
    assert launched.rc == 0, launched
    commands = (["status", "x"], ["logs", "x"], ["jobs", "--events", "x"], ["stop", "x"])
    later = [fab("--debug", *words, env={"HF_TOKEN": SECRETS["HF_TOKEN"]}) for words in commands]
    mask_key = json.loads(Path(fab.records, "x", "record.json").read_text())["mask_key"]
    assert len(mask_key) == 64
    shows(launched, "node1", r"transport: request 1: prepare, ", r"transport: request \d+: start, \d+ bytes$")
    for each in (launched, *later):
        hidden = [*SECRETS.values(), "in-the-url-77", mask_key]
        assert [text for text in hidden if text in each.stdout + each.stderr] == [], each
