"""Bad input: an error says what is wrong, where, and how to fix it; nothing is started, nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from testbed import Cluster
from tests.integration.fab import ROOT, Fab
from tests.integration.faults_injected import other_disk, refused, taken_port

# ---- the hosts file

HOSTFILES = {
    "empty": ("", "names no host"),
    "all comments": ("# node1\n\n  # node2\n", "names no host"),
    "a host twice": ("node1\nnode1\n", "h:2: node1 is already listed in"),
    "processes or a port": ("node1:4\nnode2:4\n", "h:1: node1:4 means 4 processes to MPICH"),
    "the order of /etc/hosts": (
        "127.0.0.1 localhost\n10.0.0.1 node1\n",
        "h:2: 10.0.0.1 node1: the address comes first",
    ),
    "a port too high": ("node1:65536\n", "h:1: '65536' is not a port"),
    "an open range": ("node[1-2\n", "h:1: 'node[1-2' is not a host name"),
    "an unknown key": ("node1 slotss=2\n", "h:1: unknown key 'slotss'"),
    "two hosts on a line": ("node1 node2\n", "h:1: unknown key 'node2'"),
    "an option of ssh": ("-oProxyCommand=id\n", "h:1: '-oProxyCommand=id' is not a host name"),
}


@pytest.mark.parametrize("case", HOSTFILES)
def test_an_error_in_a_hosts_file_names_the_line(fab: Fab, case: str) -> None:
    text, words = HOSTFILES[case]
    done = fab("launch-per-node", "--hostfile", str(fab.write("h", text)), "--", "light.py", "60")
    refused(done, words, "fix: ")
    fab.assert_nothing_left()


def test_one_machine_under_two_names_is_refused_with_both_lines(fab: Fab) -> None:
    port = fab.cluster.node(0).port
    hosts = fab.write("h", f"node1\nnode1:{port}\n")
    done = fab("launch-per-node", "--hostfile", str(hosts), "--", "light.py", "60")
    refused(done, f"node1 ({hosts}:1) and node1:{port} ({hosts}:2) are one machine", "fix: remove one of the lines")
    fab.assert_nothing_left()


@pytest.mark.parametrize("words", [("launch-per-node", "--hostfile"), ("launch-per-gpu", "--gpufile")])
def test_a_missing_hosts_file_is_an_error_not_a_local_run(fab: Fab, words: tuple[str, ...]) -> None:
    done = fab(*words, "no/such/file", "--", "light.py", "60")
    refused(done, "no/such/file: there is no such file", "fix: write one host per line into it")
    fab.assert_nothing_left()


# ---- names

HOSTILE_NAMES = ["../x", "a b", "-x", "x" * 100, "a;b", "$(x)", "job\n"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_is_refused(fab: Fab, name: str) -> None:
    refused(fab(*fab.launch(f"--name={name}", gpus=True)), "a job name is 1 to 63 letters", "choose another --name")
    assert not (fab.folder / "x").exists()
    fab.assert_nothing_left()


def test_a_name_is_taken_during_its_job_and_after_it(fab: Fab) -> None:
    launch = fab.launch("--name", "gpt2", gpus=True)
    assert fab(*launch).rc == 0
    refused(fab(*launch), "there is a job gpt2 already (launched", "fab jobs --remove gpt2")
    assert len(fab.sessions()) == 2
    assert fab("stop", "gpt2", "--grace", "1").rc == 0
    refused(fab(*launch), "there is a job gpt2 already", "last seen stopped")
    assert fab("jobs", "--remove", "gpt2").rc == 0
    fab.assert_nothing_left()


def test_a_tmux_session_of_another_launch_machine_is_kept(fab: Fab) -> None:
    launch = fab.launch("--name", "gpt2", gpus=True)
    assert fab(*launch).rc == 0
    elsewhere = {"FABRIC_TORCHFAB_RECORDS": str(fab.folder / "other records")}
    refused(
        fab(*launch, env=elsewhere), "2 of 2 hosts failed; nothing was started", "exists already, from another launch"
    )
    assert fab("status", "gpt2").rc == 0
    assert not list((fab.folder / "other records").iterdir())


# ---- flags

FLAGS = {
    "an empty name": (("--name", ""), "--name is empty"),
    "--env without =": (("--env", "NAME"), "--env NAME=VALUE"),
    "--env with a name that no shell takes": (("--env", "a b=1"), "'a b' cannot name"),
    "no processes": (
        ("--nproc-per-node", "0"),
        "--nproc-per-node must be auto, gpu or a number from 1 to 1024, got '0'",
    ),
    "a word for processes": (("--nproc-per-node", "x"), "got 'x'"),
    "too many processes": (("--nproc-per-node", "9" * 5000), "from 1 to 1024"),
    "a word for a port": (("--port", "x"), "--port must be a number from 1 to 65535"),
    "a port too high": (("--port", "99999"), "got '99999'"),
    "a backend that is none": (("--rdzv-backend", "x"), "--rdzv-backend is c10d or static, got 'x'"),
    "bounds backwards": (("--nnodes", "3:2"), "2 is less than 3"),
    "more nodes than hosts": (("--nnodes", "3"), "--nnodes 3 does not fit the 2 hosts"),
    "a relative workdir": (("--workdir", "here"), "--workdir must be an absolute path, got 'here'"),
    "nothing after --": (("--",), "there is nothing after --"),
    "an empty script": (("--", ""), "there is an empty argument after --"),
    "a flag that is none": (("--nope",), "launch-per-node has no flag --nope"),
    "a misspelt flag": (("--hostfiel", "x"), "launch-per-node has no flag --hostfiel; did you mean --hostfile?"),
    "a flag given twice": (("--name", "a", "--name", "b"), "--name is given twice, the second time with 'b'"),
    "a script without --": (("--name", "a", "train.py"), "after --: fab launch-per-node"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_a_wrong_flag_is_refused(fab: Fab, case: str) -> None:
    words, expected = FLAGS[case]
    refused(fab(*fab.launch(*words)), expected)
    fab.assert_nothing_left()


# ---- Fabric's own flags, files and variables

CORE = {
    "-S names no file": (("-S", "missing"), {}, "the ssh config cannot be read: missing: No such file"),
    "-S names no ssh config": (("-S", "light.py"), {}, "the ssh config cannot be read"),
    "-i names no file": (("-i", "missing"), {}, "fab -i missing: there is no such file"),
    "-t is nothing": (("-t", "0"), {}, "-t must be at least 1 second, got 0"),
    "-f holds a misspelt setting": (("-f", "typo.yaml"), {}, "did you mean torchfab.fanout?"),
    "a misspelt variable": ((), {"FABRIC_TORCHFAB_FANUOT": "3"}, "did you mean FABRIC_TORCHFAB_FANOUT?"),
    "-t names no number": (("-t", "x"), {}, "fab -t takes a whole number, got 'x'"),
    "-f names no file": (("-f", "missing.yaml"), {}, "fab -f missing.yaml: there is no such file"),
    "-f names no yaml": (("-f", "broken.yaml"), {}, "the file that fab -f names cannot be read"),
    "-f names a script": (("-f", "light.sh"), {}, "fab -f takes a .yaml file"),
    "-f replaces a section": (("-f", "scalar.yaml"), {}, "scalar.yaml: torchfab is a section, got 3"),
    "-f holds a word for a number": (("-f", "fanout.yaml"), {}, "fanout must be a number of at least 1, got 'x'"),
    "a variable that is not a number": (
        (),
        {"FABRIC_TORCHFAB_FANOUT": "x"},
        "variable FABRIC_TORCHFAB_FANOUT is not a number",
    ),
    "a variable that is too low": (
        (),
        {"FABRIC_TORCHFAB_FANOUT": "0"},
        "torchfab.fanout must be a number of at least 1, got 0",
    ),
    "a variable for a list": (
        (),
        {"FABRIC_TORCHFAB_SCRIPT": "a.py"},
        "FABRIC_TORCHFAB_SCRIPT is for a setting that is not a single value",
    ),
    "a variable of Fabric": ((), {"FABRIC_PORT": "x"}, "the environment variable FABRIC_PORT is not a number"),
}
FILES = {
    "typo.yaml": "torchfab: {fanuot: 3}",
    "broken.yaml": "a: [",
    "light.sh": "",
    "scalar.yaml": "torchfab: 3",
    "fanout.yaml": "torchfab: {fanout: x}",
}


@pytest.mark.parametrize("case", CORE)
def test_wrong_files_and_variables_of_fabric_give_no_traceback(fab: Fab, case: str) -> None:
    core, env, expected = CORE[case]
    for name, text in FILES.items():
        fab.write(name, text)
    task, *words = fab.launch(gpus=True)
    done = fab(task, *core, *words, env=env)
    refused(done, expected)
    assert "fix: " in done.stderr or "did you mean" in done.stderr
    fab.assert_nothing_left()


def test_an_unknown_task_is_named(fab: Fab) -> None:
    done = fab("lanch-per-node")
    refused(done, "there is no task lanch-per-node; did you mean launch-per-node?")
    assert (done.rc, len(done.stderr.splitlines())) == (2, 1)


def test_a_task_behind_a_launch_is_refused(fab: Fab) -> None:
    refused(fab("launch-per-node", "status"), "launch-per-node is followed by the task status", "-- status")
    fab.assert_nothing_left()


# ---- what phase one finds on the nodes

CHECKS: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "no script": (("--", "nosuch.py"), "nosuch.py does not exist", "copy your code there"),
    "a folder as script": (("--", "/etc"), "/etc is a folder", "name the script in it"),
    "no module": (("--", "-m", "no_such_module.main"), "has no module no_such_module", "--workdir"),
    "no workdir": (("--workdir", "/no/such dir"), "the working directory /no/such dir does not exist", "--workdir"),
    "no python": (("--python", "/no/python"), "there is no /no/python", "with --python"),
    "a python that is none": (("--python", "/bin/false"), "/bin/false does not run: it ended with 1", "with --python"),
    "no torch": (("--python", "/usr/bin/python3"), "/usr/bin/python3 has no module torch", "-m pip install torch"),
    "no such master": (("--master-addr", "no.such.host"), "no.such.host does not resolve", "--master-addr"),
}


@pytest.mark.parametrize("case", CHECKS)
def test_phase_one_reports_what_is_missing_once_for_all_hosts(fab: Fab, case: str) -> None:
    words, what, fix = CHECKS[case]
    done = fab(*fab.launch(*words, gpus=True))
    refused(done, "2 of 2 hosts failed; nothing was started", "node[1-2]: ", what, fix)
    assert len(done.stderr.splitlines()) == 3
    fab.assert_nothing_left(within_s=10)


def test_all_problems_of_a_host_are_reported_together(fab: Fab) -> None:
    done = fab(
        *fab.launch("--workdir", "/nowhere", "--python", "/no/python", "--master-addr", "no.such.host", gpus=True)
    )
    refused(done, "/nowhere does not exist", "no /no/python", "no.such.host does not resolve")


def test_a_master_that_resolves_to_each_node_itself_is_an_error(fab: Fab) -> None:
    done = fab(*fab.launch("--master-addr", "127.0.0.1", gpus=True))
    refused(done, "1 of 2 hosts failed", "node2: the master address 127.0.0.1 is this node itself here")


def test_a_master_address_that_node_0_does_not_have_is_an_error(fab: Fab) -> None:
    done = fab(*fab.launch("--master-addr", "192.0.2.7", gpus=True))
    refused(done, "1 of 2 hosts failed", "node1: the master address 192.0.2.7 is not an address of this host", "fix: ")


def test_a_port_in_use_is_refused(fab: Fab) -> None:
    with taken_port(fab.cluster.node(0), 45678):
        done = fab(*fab.launch("--port", "45678", gpus=True))
    refused(done, "node1: port 45678 is in use", "choose another --port")
    fab.assert_nothing_left(within_s=10)


ELSEWHERE = {
    "the script": ("project", (), "light.py does not exist"),
    "the workdir": ("", (), "/project does not exist"),
    "python": ("bin", ("--python", "{folder}/bin/python"), "there is no {folder}/bin/python"),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_a_missing_requirement_on_one_node_starts_nothing(fab: Fab, what: str) -> None:
    cover, words, expected = ELSEWHERE[what]
    (fab.folder / "bin").mkdir()
    (fab.folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (fab.folder / "bin" / "python").chmod(0o755)
    with other_disk(fab.cluster.node(1), fab.folder / cover):
        done = fab(*fab.launch(*(word.format(folder=fab.folder) for word in words), gpus=True))
    refused(done, "1 of 2 hosts failed; nothing was started", "node2: ", expected.format(folder=fab.folder))
    fab.assert_nothing_left(within_s=10)


# ---- folders

DISKS = {"read-only": ("ro", "Read-only file system"), "full": ("size=4k", "No space left on device")}


@pytest.mark.parametrize("case", DISKS)
def test_a_node_with_an_unwritable_node_dir_is_named(fab: Fab, case: str) -> None:
    options, expected = DISKS[case]
    disk = fab.folder / "disk"
    disk.mkdir()
    with other_disk(fab.cluster.node(1), disk, options):
        done = fab(*fab.launch(gpus=True), config={"node_dir": str(disk)})
    refused(done, "1 of 2 hosts failed; nothing was started", "node2: cannot write", expected, "setting node_dir")
    fab.assert_nothing_left(within_s=10)


def test_a_full_disk_in_phase_two_rolls_everything_back(fab: Fab) -> None:
    disk = fab.folder / "disk"
    disk.mkdir()
    big = f"X={'x' * 120_000}"  # fits into fab's command line, but its spec does not fit onto the disk
    with other_disk(fab.cluster.node(1), disk, "size=400k"):
        done = fab(*fab.launch("--env", big, gpus=True), config={"node_dir": str(disk)})
    refused(done, "1 of 2 hosts failed; nothing was started", "node2: ", "No space left on device")
    fab.assert_nothing_left(within_s=10)


def test_a_records_folder_that_is_a_file_is_named(fab: Fab) -> None:
    fab.records.write_text("")
    refused(fab(*fab.launch("--name", "x", gpus=True)), f"cannot write {fab.records}/x", "set torchfab.records")
    assert fab.folders() == []


def test_an_unwritable_records_folder_is_named(loopback_fab: Fab) -> None:
    fab = loopback_fab
    fab.records.mkdir()
    fab.records.chmod(0o500)  # also not writable for root
    refused(fab(*fab.launch("--name", "x", gpus=True)), f"cannot write {fab.records}/x: Permission denied")
    fab.assert_nothing_left(within_s=10)


def test_a_node_dir_that_cannot_be_written_is_named(loopback_fab: Fab) -> None:
    refused(
        loopback_fab(*loopback_fab.launch(gpus=True), config={"node_dir": "/torchfab"}),
        "node[1-2]: cannot write /torchfab: Permission denied",
    )
    loopback_fab.assert_nothing_left(within_s=10)


# ---- weird paths


def test_paths_with_blanks_quotes_and_newlines_work(netns_cluster: Cluster) -> None:
    fab = Fab(netns_cluster, 'it\'s "a" $HOME;\nfolder #{pid} é')
    try:
        done = fab(*fab.launch("--name", "weird", gpus=True))
        assert done.rc == 0, done
        assert "light 60" in fab("logs", "weird").stdout
        assert len(fab.processes()) == 6  # on each node one supervisor and two ranks
        assert fab("stop", "--grace", "1").rc == 0
        assert fab("jobs", "--remove", "weird").rc == 0
        fab.assert_nothing_left()
    finally:
        fab.close()


def test_fab_works_from_a_subfolder_and_runs_there(fab: Fab) -> None:
    below = fab.workdir / "a" / "b c"
    below.mkdir(parents=True)
    (below / "where.py").write_text("import os\nprint('in', os.getcwd())\n")
    done = fab(*fab.launch("--name", "below", "--follow", "--", "where.py", gpus=True), cwd=below)
    assert done.rc == 0, done
    assert f"in {below}" in done.stdout


def test_without_r_fab_finds_the_project_from_a_subfolder(fab: Fab) -> None:
    argv = [word for word in fab.argv("jobs") if word not in ("-r", str(ROOT))]
    env = {**os.environ, "FABRIC_TORCHFAB_RECORDS": str(fab.records)}
    done = subprocess.run(argv, cwd=ROOT / "torchfab" / "remote", env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("no job was launched")
