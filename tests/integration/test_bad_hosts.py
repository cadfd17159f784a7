"""Hosts that misbehave: each is named with cause and fix, delays no other, and nothing starts anywhere."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fab import Done, Fab
from tests.integration.faults import Matrix
from tests.integration.faults_injected import (
    REAL_TMUX,
    fake_program,
    penalizing_sshd,
    refused,
    server,
    ssh_config,
    start_up_file,
)
from tests.transport.requests import RequestType, accepts, operation
from tests.transport.test_messages import CASES, PLACES, changed

QUICK = {"prepare_timeout_s": 4, "start_timeout_s": 1}


def launch_with(fab: Fab, *hosts: str) -> Done:
    """Launch on node1 and these hosts, with a connection time-out of 3 s."""
    gpufile = str(fab.write("gpus", "\n".join(["node1", *hosts])))
    return fab("-t", "3", "launch-per-gpu", "--gpufile", gpufile, "--", "light.py", "60")


# ---- unreachable

GREETINGS = {
    "never says a word": (b"", False, "no answer from 127.0.0.1 port", "fab -t SECONDS"),
    "stalls after its banner": (b"SSH-2.0-OpenSSH_9.2\r\n", False, "no answer from 127.0.0.1 port", "fab -t SECONDS"),
    "hangs up": (b"", True, "did not finish the SSH handshake", "MaxStartups"),
    "speaks HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", True, "did not finish the SSH handshake", "check that sshd"),
    "speaks an old SSH": (b"SSH-1.5-old\r\n", True, "have no SSH version in common", "update it"),
    "answers garbage": (b"SSH-2.0-OpenSSH_9.2\r\n" + bytes(range(256)) * 9, False, "did not finish", "check that sshd"),
}


@pytest.mark.parametrize("case", GREETINGS)
def test_a_host_that_is_not_an_ssh_server_is_named(fab: Fab, case: str) -> None:
    greeting, hang_up, what, fix = GREETINGS[case]
    begun = time.monotonic()
    with server(greeting, hang_up) as port:
        done = launch_with(fab, f"127.0.0.1:{port}")
    assert time.monotonic() - begun < 40
    refused(done, "1 of 2 hosts failed; nothing was started", f"  127.0.0.1:{port}: ", what, fix)
    fab.assert_nothing_left(within_s=10)


@pytest.mark.parametrize("task", ["launch", "trust"])
def test_a_penalty_of_a_new_sshd_is_said_and_waited_for(fab: Fab, matrix: Matrix, task: str) -> None:
    row = matrix.row("an sshd refuses this address: PerSourcePenalties", fab) if task == "launch" else None
    address = fab.cluster.node(1).address
    with penalizing_sshd((address, 22), refused=1) as (port, times):
        text = f"Host node2\n    HostName 127.0.0.1\n    Port {port}\n    HostKeyAlias {address}\n"
        config = fab.write("ssh_config", text + fab.cluster.ssh_config.read_text())
        words = {"launch": fab.launch("--name", "x", gpus=True), "trust": ("trust", *fab.launch()[1:3])}[task]
        done = fab("-S", str(config), *words)
        seen = list(times)
        if row:
            row.stopped()
            row.without(2, 3)
    assert done.rc == 0, done
    said = "node2: its sshd temporarily refuses this address (PerSourcePenalties); waits up to 62 s\n"
    assert done.stderr.replace(f"node2:{port}", "node2").count(said) == 1, done
    if row:
        row.output_has(done.stderr.replace(f"node2:{port}", "node2"), said.strip())
    assert len(seen) == 2
    assert seen[1] - seen[0] >= 2.0


def test_a_host_that_refuses_is_named(fab: Fab) -> None:
    fab.cluster.kill_sshd(1)
    try:
        done = fab(*fab.launch(gpus=True))
    finally:
        fab.cluster.start_sshd(1)
    refused(done, "1 of 2 hosts failed; nothing was started", "node2: 10.77.", "port 22 refused the connection")
    fab.assert_nothing_left(within_s=10)


def test_a_host_whose_link_is_down_is_named(fab: Fab) -> None:
    fab.cluster.partition(1)
    try:
        done = fab("-t", "3", *fab.launch(gpus=True))
    finally:
        fab.cluster.heal(1)
    refused(done, "1 of 2 hosts failed; nothing was started", "node2: ")
    assert "no answer from" in done.stderr or "no connection to" in done.stderr, done
    fab.assert_nothing_left(within_s=10)


def test_equal_errors_of_hosts_are_folded(fab: Fab) -> None:
    config = fab.cluster.ssh_config.read_text()
    closed = "".join(f"Host far{rank}\n    HostName 127.0.1.{rank}\n    Port 1\n" for rank in range(1, 9))
    hosts = fab.write("h", "node1\nfar[1-8]\nno-such-host\n")
    words = ("-S", str(fab.write("config", closed + config)), "launch-per-node", "--hostfile", str(hosts))
    done = fab(*words, "--", "light.py", "60")
    refused(
        done,
        "10 of 10 hosts failed; nothing was started",
        "node1: addresses of other nodes do not resolve there: far1, ",
    )
    refused(
        done, "\n  far[1-8]: ADDRESS port 1 refused the connection\n", "\n  no-such-host: the name does not resolve"
    )
    assert done.stderr.count("fix: ") == 3
    fab.assert_nothing_left(within_s=10)


def test_unknown_host_keys_are_refused_with_sshs_fingerprints(fab: Fab) -> None:
    known = fab.write("known", "")
    config = ssh_config(fab, fab.cluster.known_hosts, known)
    done = fab("-S", config, *fab.launch(gpus=True))
    refused(done, "2 of 2 hosts failed", "its host key is not known (ssh-ed25519 SHA256:", f">> {known}")
    key = fab.cluster.node(0).home.parent / "host_key.pub"
    printed = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=True).stdout
    assert printed.split()[1] in done.stderr
    fab.assert_nothing_left()


def test_a_changed_host_key_is_refused(fab: Fab) -> None:
    first, second = (line.split(" ", 1) for line in fab.cluster.known_hosts.read_text().splitlines())
    swapped = fab.write("known", f"{first[0]} {second[1]}\n{second[0]} {first[1]}\n")
    done = fab("-S", ssh_config(fab, fab.cluster.known_hosts, swapped), *fab.launch(gpus=True))
    refused(done, "2 of 2 hosts failed", "its host key has CHANGED", "ssh-keygen -R ", f"-f {swapped}")
    fab.assert_nothing_left()


@pytest.mark.parametrize("make", [True, False], ids=["a key that nobody knows", "a key that is missing"])
def test_a_host_that_rejects_all_keys_is_named(fab: Fab, make: bool) -> None:
    key = fab.workdir / "key"
    if make:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    done = fab("-S", ssh_config(fab, fab.cluster.key, key), *fab.launch(gpus=True))
    refused(done, "2 of 2 hosts failed", "was refused: none of your keys is accepted there", "ssh-copy-id -p 22 root@")
    assert (f"there is no {key}" in done.stderr) is not make
    fab.assert_nothing_left()


# ---- programs that are too old or broken

PROGRAMS = {
    "tmux, too old": ("tmux", "echo tmux 3.1c", "tmux is 3.1, 3.2 or newer is needed"),
    "tmux, broken": ("tmux", "echo libevent: no such library >&2; exit 127", "tmux does not run: libevent: no such"),
    "python3, missing": ("python3", "exec /no/python3", "torchfab needs a python3 (3.9 or newer) there"),
    "python3, silent": ("python3", "exit 0", "torchfab's program ended there with code 0 before it answered"),
    "python3, killed": ("python3", "kill -9 $$", "torchfab's program was killed there before it answered"),
    "python3, somebody else": (
        "python3",
        r"printf '\0363\n{x}'; sleep 9",
        "the output is not from torchfab's program",
    ),
    "python3, garbage": (
        "python3",
        r"printf '\036zz\n'; yes garbage | head -c 100000",
        "torchfab's program ended there",
    ),
    "python3, stuck": ("python3", "sleep 9", "the connection is up, but torchfab's program there gave no"),
    "python3, endless": ("python3", "yes", "the connection is up, but torchfab's program there gave no"),
    "python3, of other words": (
        "python3",
        r"printf '\0362\n{}'; sleep 9",
        "the output is not from torchfab's program",
    ),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_broken_program_on_one_node_is_named(fab: Fab, case: str) -> None:
    program, script, expected = PROGRAMS[case]
    with fake_program(fab.cluster.node(1), program, script):
        done = fab(*fab.launch(gpus=True), config=QUICK)
    refused(done, "1 of 2 hosts failed; nothing was started", f"  node2: {expected}", "fix: ")
    fab.assert_nothing_left(within_s=10)


def test_an_old_python3_is_an_error_with_its_version(fab: Fab) -> None:
    # The real source arrives, in a Python that claims to be 3.8.
    script = f'code="$4"; shift 4; exec {sys.executable} -I -S -c "import sys; sys.version_info = (3, 8); $code" "$@"'
    with fake_program(fab.cluster.node(1), "python3", script):
        done = fab(*fab.launch(gpus=True))
    refused(done, "node2: torchfab needs a python3 of at least 3.9, this is 3.8", "setting agent_python")
    fab.assert_nothing_left(within_s=10)


def test_agent_python_selects_the_interpreter_on_the_nodes(fab: Fab) -> None:
    with fake_program(fab.cluster.node(1), "python3", "exit 1"):
        done = fab(*fab.launch("--name", "x", gpus=True), config={"agent_python": sys.executable})
        assert done.rc == 0, done
        assert fab("stop", "x", "--grace", "0").rc == 0


def test_no_tmux_is_named(fab: Fab, tmp_path: Path) -> None:
    node = fab.cluster.node(1)
    for program in ("python3", "bash", "sh", "env"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    with start_up_file(node, f"PATH='{tmp_path}'\n"):
        done = fab(*fab.launch(gpus=True))
    refused(done, "node2: tmux is not installed", "sudo apt-get install -y tmux")
    fab.assert_nothing_left(within_s=10)


IN_PHASE_TWO = {
    "refuses a session": ("new-session", "echo no space left >&2; exit 1", "no space left"),
    "refuses a window": ("new-window", "echo too many windows >&2; exit 1", "too many windows"),
    "hangs": ("new-session", "sleep 9", "tmux did not answer within 1 s"),
    "loses the session": ("new-session", "exit 0", "did not start within "),
}


@pytest.mark.parametrize("case", IN_PHASE_TWO)
def test_a_failing_tmux_in_phase_two_rolls_back_all_nodes(fab: Fab, case: str) -> None:
    command, script, expected = IN_PHASE_TWO[case]
    tmux = f'case "$*" in *{command}*) {script};; *) exec {REAL_TMUX} "$@";; esac'
    with fake_program(fab.cluster.node(1), "tmux", tmux):
        done = fab(*fab.launch(gpus=True), config=QUICK)
    refused(done, "1 of 2 hosts failed; nothing was started", "  node2: ", expected)
    fab.assert_nothing_left(within_s=10)


# ---- a malicious node

# It reads our program from stdin and discards it; then it answers every request as its first argument says.
EVIL = """import json, os, sys
sys.stdin.buffer.read(int(sys.argv[-1]))
out = sys.stdout.buffer
if sys.argv[1] in ("10 GB", "a flood"):
    out.write(b"\\x1e%d\\n" % {"10 GB": 10**10, "a flood": 6 * 10**7}[sys.argv[1]])
    while True:
        out.write(b"x" * 65536)
for line in sys.stdin:
    asked = json.loads(line)
    answer = json.load(open(sys.argv[2])).get(asked["op"], {})
    data = json.dumps({**answer, "of": asked["number"]}).encode()
    data = data[:-9] if sys.argv[1] == "broken JSON" else data
    out.write(b"\\x1e%d\\n%s" % (len(data), data))
    out.flush()
"""
ASKED = ("status", "logs", "why", "stop", "doctor", "launch-per-gpu")
HARM = "\x1b]0;harm\x07\x9b31m../../harm"
MEASURE = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)"""


def harmful(kind: RequestType) -> Any:
    """Return a valid answer in which every free text is replaced by terminal escape codes."""
    answer = CASES[kind].answer
    for path in PLACES[kind]:
        other = changed(answer, path, HARM)
        fits = accepts(kind, other)
        answer = other if isinstance(part_of(answer, path), str) and fits else answer
    return answer


def part_of(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize("harm", ["10 GB", "a flood", "broken JSON", "escape codes"])
def test_a_malicious_node_is_an_error_without_effect(fab: Fab, harm: str) -> None:
    assert fab(*fab.launch("--name", "x", gpus=True)).rc == 0
    program = fab.write("evil.py", EVIL)
    table = fab.write("answers.json", json.dumps({operation(kind): harmful(kind) for kind in CASES}))
    argv = shlex.join([sys.executable, "-IS", str(program), harm, str(table)])
    words = {
        task: (task, *(("x",) if task in ASKED[:4] else ("--hostfile", str(fab.cluster.hostfile)))) for task in ASKED
    }
    words["launch-per-gpu"] = fab.launch("--name", "y", gpus=True)
    if harm == "a flood":  # it is slow
        words = {task: words[task] for task in ("status", "launch-per-gpu")}
    with fake_program(fab.cluster.node(1), "python3", f'exec {argv} "$@"'):
        under = (sys.executable, "-c", MEASURE)
        quick = {"FABRIC_TORCHFAB_PREPARE_TIMEOUT_S": "4", "FABRIC_TORCHFAB_ANSWER_TIMEOUT_S": "4"}
        running = {task: fab.start(*each, env=quick, under=under) for task, each in words.items()}
        ended = {task: (*process.communicate(timeout=60), process.returncode) for task, process in running.items()}
    for task, (stdout, stderr, code) in ended.items():
        *errors, kib = stderr.splitlines()
        assert int(kib) < 400_000, (task, kib)
        assert "Traceback" not in stderr, (task, stderr)
        assert not {"\x1b", "\x9b", "\x07"} & {*stdout, *stderr}, (task, stdout, stderr)
        assert code != 0 or harm == "escape codes", (task, stdout, errors)  # a valid answer may be a lie
    assert not list(fab.base.rglob("*harm*"))
    assert fab.jobs() == (["x", "y"] if harm == "escape codes" else ["x"])
    assert fab("stop", "x", "--grace", "0").rc == 0


# ---- start-up files

NOISE = {
    "prints": "echo welcome\necho noise >&2\n",
    "prints the sign that begins our frames": "printf 'a\\036b'; printf '\\036\\n'; echo\n",
    "prints a lot": "head -c 300000 /dev/zero | tr '\\0' x\n",
}


@pytest.mark.parametrize("case", NOISE)
def test_output_of_a_start_up_file_is_ignored(fab: Fab, case: str) -> None:
    with start_up_file(fab.cluster.node(1), NOISE[case]):
        done = fab(*fab.launch("--name", "noise", gpus=True))
        assert (done.rc, done.stderr) == (0, ""), done
        assert "node2  running" in fab("status", "noise").stdout
        assert fab("stop", "noise", "--grace", "0").rc == 0


SPOILERS = {
    "ends the login": ("exit 3\n", "torchfab's program ended there with code 3 before it answered", "start-up file"),
    "reads what is ours": ("cat > /dev/null\n", "gave no answer within 4 s", "fix: "),
}


@pytest.mark.parametrize("case", SPOILERS)
def test_a_start_up_file_that_breaks_the_login_is_hinted_at(fab: Fab, case: str) -> None:
    text, expected, fix = SPOILERS[case]
    with start_up_file(fab.cluster.node(1), text):
        done = fab(*fab.launch(gpus=True), config=QUICK)
    refused(done, "node2: ", expected, fix)
    fab.assert_nothing_left(within_s=10)


# ---- a slow host


def test_a_stuck_host_delays_no_other(fab: Fab) -> None:
    assert fab(*fab.launch("--name", "x", gpus=True)).rc == 0
    with fake_program(fab.cluster.node(0), "python3", "sleep 60"):
        begun = time.monotonic()
        status = fab("status", "x", config={"answer_timeout_s": 4})
        stopped = fab("stop", "x", "--grace", "0", config={"answer_timeout_s": 4})
    assert time.monotonic() - begun < 50
    assert "node1  unreachable (" in status.stdout, status
    assert "node2  running" in status.stdout, status
    assert status.rc == 1
    assert "node2: 2 processes ended" in stopped.stdout, stopped
    assert "1 of 2 nodes could not be reached to stop the job" in stopped.stderr, stopped
    assert stopped.rc == 1
    assert fab("stop", "x", "--grace", "0").rc == 0
