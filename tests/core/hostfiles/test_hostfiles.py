"""Files of hosts: which dialect a text is, and what of it is read. One case for each kind that people have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.core.hostfiles.factories import error, hosts, read
from tests.hostile import HOSTILE
from tests.support import fuzzed, refusal
from torchfab.core import hostfiles
from torchfab.core.errors import InventoryError, UsageError
from torchfab.core.hostfiles.dialect import Source
from torchfab.core.specs import Slot


def slots(**counts: int) -> list[Any]:
    return [{"host": host, "slots": count} for host, count in counts.items()]


ANSIBLE, CLUSTERSHELL = "an inventory of ansible", "a groups file of ClusterShell"
OPENMPI, MLX, SGE, LSF = (
    "a hostfile of Open MPI",
    "a hosts file of MLX (JSON)",
    "a node file of SGE",
    "a node file of LSF",
)
LIST = "a list of hosts"
READ: dict[str, tuple[str, str, list[Any]]] = {
    "ours": ("node[1-2]\n", "", ["node1", "node2"]),
    "deepspeed": ("a slots=8\nb slots=2 # half\n#c slots=8\n", "", slots(a=8, b=2)),
    "deepspeed padded, no last newline": ("a      slots=8\nlonger slots=4", "", slots(a=8, longer=4)),
    "flagscale": ("x.x.x.x slots=4 type=gpu", "", [{"host": "x.x.x.x", "slots": 4}]),
    "volcano": ("job-worker-0.job\njob-worker-1.job\n", "", ["job-worker-0.job", "job-worker-1.job"]),
    "open mpi": ("a slots=8 max_slots=8\n", OPENMPI, slots(a=8)),
    "open mpi, blanks": ("a slots = 8\nb slots= 4  max-slots =8\nc\n", OPENMPI, [*slots(a=8, b=4), "c"]),
    "sge": ("a 4 all.q@a UNDEFINED\nb 2 all.q@b <NULL>\na 1 short.q@a UNDEFINED\n", SGE, slots(a=5, b=2)),
    "lsf, LSB_MCPU_HOSTS": ("batch1 1 a 4 b 4\n", LSF, slots(a=4, b=4)),
    "mlx": (
        '[\n {"ssh": "me@h", "ips": ["10.0.0.2", "10.1.0.2"]},\n {"ssh": "g", "ips": []}]',
        MLX,
        [{"host": "h", "user": "me", "address": "10.0.0.2"}, "g"],
    ),
    "mlx, newer": ('{"backend": "ring", "hosts": [{"ssh": "g", "rdma": [null]}]}', MLX, ["g"]),
    "list in JSON": ('["a", "me@b:2222"]', "a list of hosts", ["a", {"host": "b", "user": "me", "port": 2222}]),
    "list in YAML": ("# ours\n- a\n- b slots=4\n", "a list of hosts", ["a", *slots(b=4)]),
    "ansible, INI": ("[gpu]\na\nb ansible_host=10.0.0.2\n", ANSIBLE, ["a", "10.0.0.2"]),
    "ansible, variables alone": ("a ansible_port=2222\n", ANSIBLE, [{"host": "a", "port": 2222}]),
    "ansible, range alone": ("gpu-[01:03]\n", ANSIBLE, ["gpu-01", "gpu-02", "gpu-03"]),
    "ansible, YAML": ("all:\n  hosts:\n    a:\n    b:\n", ANSIBLE, ["a", "b"]),
    "ansible-inventory --list": ('{"_meta": {"hostvars": {}}, "gpu": {"hosts": ["a", "b"]}}', ANSIBLE, ["a", "b"]),
    "clustershell, flat": ("gpu: node[1-2]\nall: @gpu,c1\n", CLUSTERSHELL, ["node1", "node2", "c1"]),
    "clustershell, YAML": ("roles:\n  gpu: 'n[1-2]'\n  cpu: ['c1']\n", CLUSTERSHELL, ["n1", "n2", "c1"]),
    "mapping in JSON": (
        '{"a": {"slots": 8}, "b": {"gpus": "0-1"}}',
        LIST,
        [*slots(a=8), {"host": "b", "gpus": ("0", "1")}],
    ),
    "objects in JSON": (
        '{"nodes": [{"hostname": "a", "slots": 8}, {"ip": "10.0.0.2", "user": "me"}]}',
        LIST,
        [*slots(a=8), {"host": "10.0.0.2", "user": "me"}],
    ),
    "objects in YAML": ("hosts:\n  - host: a\n    slots: 8\n  - name: b\n", LIST, [*slots(a=8), "b"]),
    "ansible, children before": ("[all:children]\ngpu\n[gpu]\na\n", ANSIBLE, ["a"]),
    "bash braces": ("node{1..4}\n", "", ["node1", "node2", "node3", "node4"]),
    "a list on one line": ("a,b,c\n", "", ["a", "b", "c"]),
    "a trailing dot": ("a.example.\n", "", ["a.example"]),
    "a comment with ;": ("; hosts\na\n", "", ["a"]),
    "an indented list": ("  a\n  b  # big - and slow\n", "", ["a", "b"]),
    "quoted slots": ('a slots="8"\n', "", slots(a=8)),
    "drained": ("a slots=0\nb\n", "", ["b"]),
    "CRLF, BOM, users": (
        "\ufeffme@10.0.0.1\r\nme@10.0.0.2\r\n",
        "",
        [{"host": f"10.0.0.{n}", "user": "me"} for n in (1, 2)],
    ),
    "range with a suffix": ("node[01-02]-ib0", "", ["node01-ib0", "node02-ib0"]),
    "port of a container": ("a:2222\nb:2223\n", "", [{"host": "a", "port": 2222}, {"host": "b", "port": 2223}]),
    "the port of SSH": ("a:22\nb:22\n", "", [{"host": "a", "port": 22}, {"host": "b", "port": 22}]),
    "a low port beside others": ("a:23\nb\n", "", [{"host": "a", "port": 23}, "b"]),
    "IPv6": ("[fd00::1]\n[fd00::2]:22\n", "", ["fd00::1", {"host": "fd00::2", "port": 22}]),
}


@pytest.mark.parametrize(("text", "dialect", "expected"), READ.values(), ids=READ)
def test_each_dialect_is_recognised_and_read(text: str, dialect: str, expected: list[Any]) -> None:
    found = read(text)
    assert (found.dialect, hosts(found)) == (dialect, expected)


FORCED: dict[str, tuple[str, str, list[Any]]] = {
    "mpich": ("a:4\nb:8 # fast\nc\n", "mpich", slots(a=4, b=8, c=1)),
    "intel": ("a:4\n", "intel", slots(a=4)),
    "horovod on one line": ("a:4,b:4\n", "horovod", slots(a=4, b=4)),
    "horovod, with blanks": ("a:4, b:4\n", "horovod", slots(a=4, b=4)),
    "mvapich": ("a:2:mlx5_0\n", "mvapich", slots(a=2)),
    "hydra with an interface": (
        "a:2 ifhn=a-ib binding=user:0,1\n",
        "mpich",
        [{"host": "a", "address": "a-ib", "slots": 2}],
    ),
    "ports after all": ("a:8\nb:8\n", "torchfab", [{"host": "a", "port": 8}, {"host": "b", "port": 8}]),
    "pbs": ("b\nb\na\nb\n", "pbs", slots(b=3, a=1)),
    "lsf": ("batch1\na\na\nb\nb\n", "lsf", slots(a=2, b=2)),
    "lsf, a host per slot": ("a\na\nb\n", "lsf", slots(a=2, b=1)),
    "sge, two columns": ("a 4\nb 2\n", "sge", slots(a=4, b=2)),
    "etc-hosts": (
        "127.0.0.1\tlocalhost\n::1 ip6-localhost\nff02::1 ip6-allnodes\n10.0.0.1 a a.lan # gpu\n10.0.0.2\tb\n",
        "etc-hosts",
        [{"host": "a", "address": "10.0.0.1"}, {"host": "b", "address": "10.0.0.2"}],
    ),
    "ansible": ("a\nb\n", "ansible", ["a", "b"]),
    "ansible in YAML": ("gpu:\n  hosts:\n    a:\n", "ansible", ["a"]),
    "openmpi": ("a count=2\n", "openmpi", slots(a=2)),
    "clustershell": ("gpu: a\n", "clustershell", ["a"]),
    "mlx": ('[{"ssh": "a"}]', "mlx", ["a"]),
    "deepspeed": ("a slots=2\n", "deepspeed", slots(a=2)),
}


@pytest.mark.parametrize(("text", "file_format", "expected"), FORCED.values(), ids=FORCED)
def test_a_format_that_is_named_is_read(text: str, file_format: str, expected: list[Any]) -> None:
    assert hosts(read(text, file_format)) == expected


PORTS = "or give --hostfile-format mpich, or --hostfile-format torchfab for ports"
ONCE_PER_SLOT = (
    "for a node file of PBS or LSF, which names a host once per slot, give --hostfile-format pbs, or lsf, which omits "
    "the batch node"
)
NO_HOSTS = ", not a hosts file"
TITLES = "leave the titles out, and write node1 slots=8, with the key of each value"
ONE_A_LINE = "write one host per line, or a list with commas: node1,node2"
REFUSED: dict[str, tuple[str, str, str]] = {
    "processes or a port": (
        "172.23.2.192:8\n172.23.2.193:8\n",
        "hosts:1: 172.23.2.192:8 means 8 processes to MPICH, Intel MPI and Horovod, and port 8 to SSH",
        f"write 172.23.2.192 slots=8 for processes, or 172.23.2.192 port=8 for the port; {PORTS}",
    ),
    "one low number": (
        "a\nb:4\nc:2222\n",
        "hosts:2: b:4 means 4 processes to MPICH, Intel MPI and Horovod, and port 4 to SSH",
        f"write b slots=4 for processes, or b port=4 for the port; {PORTS}",
    ),
    "numbers up to 64 everywhere": (
        "a:40\nb:48\n",
        "hosts:1: a:40 means 40 processes to MPICH, Intel MPI and Horovod, and port 40 to SSH",
        f"write a slots=40 for processes, or a port=40 for the port; {PORTS}",
    ),
    "metis": (
        "IP1 4\n",
        "hosts:1: unknown key '4' in '4'",
        "write a number of processes with its key: IP1 slots=4",
    ),
    "a login behind the host": (
        "10.0.0.1 root\n",
        "hosts:1: unknown key 'root' in 'root'",
        "write a login name before the host: root@10.0.0.1",
    ),
    "a host per slot": (
        "a\na\nb\n",
        "hosts:2: a is already listed in hosts:1",
        f"write it once: a slots=2; {ONCE_PER_SLOT}",
    ),
    "/etc/hosts": (
        "127.0.0.1 localhost\n10.0.0.1 node1 node1.lan\n",
        "hosts:2: 10.0.0.1 node1: the address comes first: is this /etc/hosts?",
        "write the name first: node1 address=10.0.0.1; or give --hostfile-format etc-hosts, for all of its hosts",
    ),
    "a rankfile": (
        "rank 0=node1 slot=1:0-2\n",
        "hosts:1: a rankfile of Open MPI, which binds each rank to cores",
        "write one line per rank into a gpus file, in the order of the ranks: node1 (and fab launch-per-gpu)",
    ),
    "an exclusion": ("^a\n", "hosts:1: ^a: an exclusion of Open MPI", "leave the line out, or write a slots=0"),
    "a relative host": (
        "+n1\n",
        "hosts:1: +n1: a relative host of Open MPI, which counts the hosts of an allocation",
        "write its name",
    ),
    "ray": (
        "cluster_name: x\nprovider:\n  type: local\n",
        "hosts: a cluster file of Ray, not a hosts file",
        "fab import hosts converts it to a command line; for its hosts, write one per line",
    ),
    "kubernetes": (
        "apiVersion: batch/v1\nkind: Job\n",
        "hosts: a manifest of Kubernetes, not a hosts file",
        "fab import hosts converts it to a command line; for its hosts, write one per line",
    ),
    "accelerate": (
        "compute_environment: LOCAL_MACHINE\ngpu_ids: 0,1\n",
        "hosts: a configuration of accelerate, not a hosts file",
        "fab import hosts converts it to a command line; for its hosts, write one per line",
    ),
    "TF_CONFIG": (
        '{"cluster": {"worker": ["a:2222"]}, "task": {"type": "worker", "index": 0}}',
        "hosts: TF_CONFIG of TensorFlow, not a hosts file",
        "write its hosts one per line, without the ports",
    ),
    "a program": (
        "#!/usr/bin/env python3\nprint()\n",
        "hosts:1: a program (/usr/bin/env python3), not a hosts file",
        "run it, and pass its output: FILE | fab … --hostfile -",
    ),
    "a vault": (
        "$ANSIBLE_VAULT;1.1;AES256\n6138\n",
        "hosts:1: an encrypted file of ansible-vault",
        "pass the output of: ansible-vault view FILE",
    ),
    "ssh's configuration": (
        "Host *\n  User me\nHost a b\n  HostName 10.0.0.1\n",
        "hosts:1: a configuration of ssh, not a hosts file",
        "write the names of its hosts: a, b; give the configuration with fab -S hosts",
    ),
    "an ssh command": (
        "ssh -p 40022 root@10.0.0.1\n",
        "hosts:1: 'ssh -p 40022 root@10.0.0.1' is a command, not a host",
        "write root@10.0.0.1 port=40022",
    ),
    "a shell script": (
        'export HOSTS="a b"\n',
        "hosts:1: a shell script, which sets HOSTS, not a hosts file",
        "write one host per line, or a list with commas: node1,node2",
    ),
    "numbers in JSON": (
        '{"a": 1}',
        "hosts:1: a JSON or YAML document that maps names to numbers (a: 1): hosts with slots, or settings",
        'write hosts with slots as {"a": {"slots": 1}}, or one per line: a slots=1',
    ),
    "numbers in YAML": (
        "lr: 8\nsteps: 4\n",
        "hosts:1: a JSON or YAML document that maps names to numbers (lr: 8): hosts with slots, or settings",
        'write hosts with slots as {"lr": {"slots": 8}}, or one per line: lr slots=8',
    ),
    "unknown JSON": (
        '{"a": [1]}',
        "hosts: a JSON or YAML document that lists no hosts",
        'write one host per line, or ["node1", "node2"] in JSON',
    ),
    "a key": (
        "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n",
        f"hosts:1: a key or a certificate{NO_HOSTS}",
        "write the hosts; fab -i FILE names a key",
    ),
    "known_hosts": (
        "a,10.0.0.1 ssh-ed25519 AAAAC3\n",
        f"hosts:1: known_hosts of ssh{NO_HOSTS}",
        "write the hosts",
    ),
    "a table": (
        "host,slots\na,8\n",
        "hosts:1: a table with titles, not a hosts file",
        "leave the titles out, and write node1 slots=8, with the key of each value",
    ),
    "a list of bash": ("HOSTS=(a b)\n", "hosts:1: a program's list, not a hosts file", ONE_A_LINE),
    "a list of Python": ("hosts = ['a', 'b']\n", "hosts:1: a program's list, not a hosts file", ONE_A_LINE),
    "HTML": ("<!DOCTYPE html>\n<html>\n", "hosts:1: a page of HTML or XML, not a hosts file", ONE_A_LINE),
}


@pytest.mark.parametrize(("text", "problem", "fix"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_has_its_dialects_name_and_the_line_to_write(text: str, problem: str, fix: str) -> None:
    assert error(text) == f"{problem}\n  fix: {fix}"


@pytest.mark.parametrize("text", ["a:4 slots=2", "a:4 gpus=0", "a port=4", "a:4 slots=2\nb:4 slots=2"])
def test_a_port_beside_slots_is_a_port(text: str) -> None:
    assert read(text).inventory.nodes[0].port == 4


def test_an_unknown_format_is_an_error_that_lists_the_formats() -> None:
    with pytest.raises(UsageError, match=r"--hostfile-format must be one of torchfab, .*mpich.*; got 'mpihc'"):
        hostfiles.check_format("mpihc")


def test_the_hosts_flag_asks_too() -> None:
    with pytest.raises(InventoryError, match=r"^-H: a:4 means 4 processes"):
        hostfiles.parse_hosts(Source("a:4\nb:4", "-H"))
    found = hostfiles.parse_hosts(Source("a:4\nb:4", "-H"), "mpich")
    assert [(node.slots, node.origin) for node in found.inventory.nodes] == [(4, "-H"), (4, "-H")]


def test_a_group_is_asked_for_in_vain_where_there_are_none() -> None:
    assert error("a\nb\n", groups=("gpu",)).startswith("hosts: has no groups, such as 'gpu'")


# ---- gpus


@pytest.mark.parametrize(
    ("text", "file_format"),
    [("a\na\nb\n", ""), ("a:2\nb:1\n", "mpich"), ("a 2 q@a U\nb 1 q@b U\n", ""), ("a gpus=0-1\nb gpus=0", "")],
)
def test_a_gpus_file_has_a_process_per_slot(text: str, file_format: str) -> None:
    found = hostfiles.parse_gpus(Source(text, "gpus"), file_format)
    assert [node.host for node in found.inventory.nodes] == ["a", "b"]
    assert found.inventory.slots == (Slot(0, 0, 0), Slot(1, 0, 1), Slot(2, 1, 0))


def test_a_gpus_file_asks_what_a_low_number_is() -> None:
    with pytest.raises(InventoryError, match=r"^gpus:1: a:2 means 2 processes"):
        hostfiles.parse_gpus(Source("a:2\n", "gpus"))


# ---- files


def test_the_shipped_files_name_localhost() -> None:
    root = Path(__file__).parents[3]
    (node,) = hostfiles.read_hosts(root / "hosts").inventory.nodes
    gpus = hostfiles.read_gpus(root / "gpus").inventory
    assert (node.is_local, [each.is_local for each in gpus.nodes], len(gpus.slots)) == (True, [True], 2)


def test_a_file_with_bom_and_crlf_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(b"\xef\xbb\xbfnode1\r\n# x\r\nnode2")
    found = hostfiles.read_hosts(path).inventory.nodes
    assert [(node.host, node.origin) for node in found] == [("node1", f"{path}:1"), ("node2", f"{path}:3")]


def test_variables_beside_an_inventory_are_noted(tmp_path: Path) -> None:
    (tmp_path / "inventory").write_text("[gpu]\na\n")
    (tmp_path / "group_vars").mkdir()
    notes = hostfiles.read_hosts(tmp_path / "inventory").inventory.notes
    assert notes == (f"{tmp_path}/group_vars is not read: ansible-inventory --list prints the values",)


# ---- any hosts, any text

NAMES = st.lists(st.from_regex(r"[a-z]{1,8}[0-9]{0,3}(-ib)?", fullmatch=True), min_size=1, max_size=8, unique=True)


def _pbs(counts: dict[str, int]) -> str:
    return "\n".join(host for host, count in counts.items() for _ in range(count))


def _yaml(counts: dict[str, int]) -> str:
    return "all:\n  hosts:\n" + "".join(f"    {host}:\n      slots: {count}\n" for host, count in counts.items())


WRITERS = {
    "deepspeed": lambda counts: "\n".join(f"{host} slots={count}" for host, count in counts.items()),
    "openmpi": lambda counts: "\n".join(f"{host} slots = {count} max_slots={count}" for host, count in counts.items()),
    "mpich": lambda counts: "\n".join(f"{host}:{count}" for host, count in counts.items()),
    "sge": lambda counts: "\n".join(f"{host} {count} all.q@{host} UNDEFINED" for host, count in counts.items()),
    "pbs": _pbs,
    "ansible": _yaml,
}


@given(NAMES.flatmap(lambda names: st.fixed_dictionaries({name: st.integers(1, 9) for name in names})))
def test_every_dialect_says_the_same_of_the_same_hosts(counts: dict[str, int]) -> None:
    assume(not {"null", "host", "ssh", "rank"} & set(counts))
    for file_format, write in WRITERS.items():
        nodes = read(write(counts), file_format).inventory.nodes
        assert {node.host: node.slots for node in nodes} == counts


PIECES = st.sampled_from(
    [
        *(
            "[gpu]",
            "[a:children]",
            "[a:vars]",
            "n[01:03]",
            "a",
            "b:4",
            "slots=4",
            "slots = 4",
            "max_slots=2",
            "@a",
            "- a",
        ),
        *(
            "all:",
            "  hosts:",
            "    a:",
            "{",
            "}",
            "[",
            "]",
            '"ssh"',
            ":",
            ",",
            "'",
            '"',
            "x=1",
            "ansible_host=b",
            "rank 0=a",
        ),
        *("10.0.0.1 a", "fd00::1", "a 4 q@a U", "&x", "*x", "{1..3}", "\t", "#", ";", "!vault", "|", "%YAML", "---"),
    ]
)
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(st.one_of(PIECES, st.sampled_from([" ", "\n", "\n  "])), max_size=25).map("".join),
    st.lists(PIECES, max_size=10).map("\n".join),
    st.sampled_from(list(HOSTILE.values())),
)


@fuzzed(TEXTS, st.sampled_from(["", "", *hostfiles.FORMATS]))
def test_any_text_is_read_or_rejected_as_a_file_of_hosts(text: str, file_format: str) -> None:
    for parse in (hostfiles.parse_hosts, hostfiles.parse_gpus):
        refused = refusal(InventoryError, partial(_parse, parse, text, file_format))
        assert refused is None or (refused.message.startswith("x:") and refused.fix)


def _parse(parse: Callable[[Source, str], hostfiles.HostFile], text: str, file_format: str) -> None:
    assert parse(Source(text, "x"), file_format).inventory.nodes
