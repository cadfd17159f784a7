"""`fab run` on real hosts: folded output, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.integration.fab import Done, Fab, eventually
from tests.integration.faults_injected import refused
from tests.integration.jobs import ok
from torchfab.remote import procfs


def run(fab: Fab, *words: str) -> Done:
    """Run `fab run WORDS`; the words after `--` are the command."""
    return fab("run", "--hostfile", str(fab.cluster.hostfile), *words)


def test_equal_output_is_printed_once_and_failures_have_their_hosts(any_fab: Fab) -> None:
    first, second = any_fab.cluster.hosts
    done = ok(run(any_fab, "--env", "GREETING=a b", "--", "bash", "-c", "echo $GREETING; pwd"))
    assert done.stdout.endswith(f":\n  a b\n  {any_fab.workdir}\n"), done
    assert done.stdout.count("a b") == 1, done
    assert "python" in ok(run(any_fab, "--json", "--", "which", "python3")).stdout
    fails_once = ("bash", "-c", "if mkdir once 2>/dev/null; then exit 0; else echo no >&2; exit 3; fi")
    done = run(any_fab, "--", *fails_once)
    assert done.rc == 3, done
    assert "the command failed on 1 of 2 hosts" in done.stderr, done
    failed = [host for host in (first, second) if f"  {host}: exit code 3" in done.stderr]
    assert len(failed) == 1, done
    assert f"{failed[0]}:\n  no" in done.stderr, done


def test_a_document_for_scripts(fab: Fab) -> None:
    done = run(fab, "--json", "--", "sh", "-c", "hostname; echo e >&2; kill -9 $$")
    assert done.rc == 137, done
    hosts = json.loads(done.stdout)["hosts"]
    assert [each["stdout"] for each in hosts] == ["node1", "node2"]
    assert {(each["exit_code"], each["signal"], each["stderr"]) for each in hosts} == {(137, 9, "e")}
    done = ok(fab("-H", "localhost", "run", "--workdir", "/", "--", "pwd"))
    assert done.stdout == "localhost:\n  /\n", done


def test_what_cannot_run_says_so_on_every_host(fab: Fab) -> None:
    done = run(fab, "--", "no-such-program")
    assert done.rc == 1, done
    assert "node[1-2]: there is no program no-such-program on PATH" in done.stderr, done
    done = run(fab, "--workdir", "/no/such", "--", "true")
    assert "node[1-2]: the working directory /no/such does not exist" in done.stderr, done
    refused(run(fab), "needs a command after --")
    refused(run(fab, "--", "nvidia-smi | head"), "fab run -- bash -c 'nvidia-smi | head'")


def test_secrets_of_a_command_are_in_no_log(fab: Fab) -> None:
    done = ok(run(fab, "--debug", "--env", "API_TOKEN=hush-4711", "--", "sh", "-c", "test $API_TOKEN; : hush-4712"))
    assert "run" in done.stderr
    assert "hush-47" not in done.stdout + done.stderr, done


def test_a_time_out_ends_the_command_on_all_hosts(fab: Fab) -> None:
    done = run(fab, "--timeout", "1", "--", "sleep", "61.7")
    assert done.rc == 124, done
    assert "node[1-2]: did not end within --timeout" in done.stderr, done
    assert processes("sleep\x0061.7") == []


def test_ctrl_c_leaves_nothing_running(fab: Fab) -> None:
    words = ("run", "--hostfile", str(fab.cluster.hostfile), "--", "bash", "-c", "echo begun; sleep 62.7 & sleep 62.7")
    process = fab.start(*words)
    assert eventually(lambda: len(processes("sleep\x0062.7")) == 4, 30)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "interrupted: the command was ended on node[1-2]" in stderr
    assert stdout == "node[1-2]:\n  begun\n"
    assert processes("sleep\x0062.7") == []


def test_a_killed_fab_leaves_nothing_running(fab: Fab) -> None:
    process = fab.start("run", "--hostfile", str(fab.cluster.hostfile), "--", "sleep", "63.7")
    assert eventually(lambda: len(processes("sleep\x0063.7")) == 2, 30)
    process.kill()
    process.communicate(timeout=30)
    assert eventually(lambda: processes("sleep\x0063.7") == [], 15)


def processes(command: str) -> list[int]:
    """Return the processes of this machine, which runs all nodes, with this command line."""
    wanted = command.encode() + b"\0"
    found = []
    for pid in procfs.all_pids():
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes() == wanted:
                found.append(pid)
        except OSError:  # it has ended
            pass
    return found
