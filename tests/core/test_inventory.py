"""Parsing of `hosts` and `gpus`: every rule, and every error with file and line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import make_nodes
from tests.hostile import HOSTILE, UTF8
from tests.support import fuzzed, refusal
from torchfab.core.errors import InventoryError
from torchfab.core.hostlines.targets import MAX_HOSTS
from torchfab.core.hostlines.words import lines_of
from torchfab.core.inventory import (
    fold,
    fold_ranks,
    hosts_from_lines,
    parse_gpus,
    parse_hosts,
    parse_hosts_flag,
    parse_ranks,
)
from torchfab.core.specs import Node, Slot

EXPECTED = (
    "expected [user@]host[:port] [slots=N] [gpus=0,1] [address=A], ranges such as node[01-16], IPv6 such as [fd00::1]"
)
HOST_KEYS = "known keys here: slots=, gpus=, address=, user=, port=, python=, workdir=, setup=, env.NAME="
PROCESS_KEYS = HOST_KEYS.replace(" slots=,", "")


def hosts_of(text: str) -> list[str]:
    return [node.host for node in parse_hosts(text, "hosts")]


def message(text: str) -> str:
    with pytest.raises(InventoryError) as caught:
        parse_hosts(text, "hosts")
    return str(caught.value)


# ---- hosts


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\nb", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("\ufeffa\nb\n", ["a", "b"]),
        ("# first\n\n  a  # the fast one\n\t\nb#c\n   # end", ["a", "b"]),
        ("b\na\n", ["b", "a"]),
        ("node[1-3]\n", ["node1", "node2", "node3"]),
        ("node[01-03]\n", ["node01", "node02", "node03"]),
        (
            "node[1,3,7-9].cluster\n",
            ["node1.cluster", "node3.cluster", "node7.cluster", "node8.cluster", "node9.cluster"],
        ),
        ("rack[1-2]node[1-2]\n", ["rack1node1", "rack1node2", "rack2node1", "rack2node2"]),
        ("node[0-6/3]\n", ["node0", "node3", "node6"]),
        ("10.0.0.7\nnode_1.example.org\nA-b\n", ["10.0.0.7", "node_1.example.org", "A-b"]),
        ("a,b, c ,d\n", ["a", "b", "c", "d"]),
        ("node[1,3],x,\n", ["node1", "node3", "x"]),
        ("node{1..3}\n", ["node1", "node2", "node3"]),
        ("node{08..11}-ib0\n", ["node08-ib0", "node09-ib0", "node10-ib0", "node11-ib0"]),
        ("r{a..b}n{1,3}\n", ["ran1", "ran3", "rbn1", "rbn3"]),
        ("n{9..1..4},z\n", ["n9", "n5", "n1", "z"]),
        ("node1.example.org.\n", ["node1.example.org"]),
        ("; a comment\na ; and one\n", ["a"]),
        ("ssh://me@a:2222\n", ["a"]),
        ("a\nb slots=0\nc\n", ["a", "c"]),
    ],
)
def test_hosts_keep_the_order_of_the_file(text: str, hosts: list[str]) -> None:
    assert hosts_of(text) == hosts


def test_a_line_sets_all_attributes_of_a_host() -> None:
    text = "# ours\nann@node1:2222 slots=8 gpus=0,3 address=10.0.0.1\nlocalhost\n[fd00::1]\n[fe80::1%eth0]:2200\n"
    assert parse_hosts(text, "my hosts") == (
        Node(0, "node1", "ann", 2222, "10.0.0.1", 8, ("0", "3"), "my hosts:2"),
        Node(1, "localhost", origin="my hosts:3"),
        Node(2, "fd00::1", origin="my hosts:4"),
        Node(3, "fe80::1%eth0", port=2200, origin="my hosts:5"),
    )


def test_a_line_sets_the_attributes_of_all_hosts_of_its_range() -> None:
    assert parse_hosts("ann@n[1-2]:22 slots=2\nn3", "hosts") == (
        Node(0, "n1", "ann", 22, slots=2, origin="hosts:1"),
        Node(1, "n2", "ann", 22, slots=2, origin="hosts:1"),
        Node(2, "n3", origin="hosts:2"),
    )


def test_two_ports_of_one_host_are_two_nodes() -> None:
    assert [node.label for node in parse_hosts("a:1\na:2\na", "hosts")] == ["a:1", "a:2", "a"]


def test_the_label_of_an_ipv6_address_with_a_port_has_brackets() -> None:
    assert [node.label for node in parse_hosts("[::1]\n[::1]:22", "hosts")] == ["::1", "[::1]:22"]


def test_keys_give_a_host_its_own_user_port_directories_and_variables() -> None:
    keys = "user=ann port=2222 python=/opt/py/bin/python workdir='/data/my project' env.A=1 env.NCCL_IB_HCA=\"a, b\""
    assert parse_hosts(f"a {keys}", "hosts") == (
        Node(
            *(0, "a", "ann", 2222),
            origin="hosts:1",
            python="/opt/py/bin/python",
            workdir="/data/my project",
            env=(("A", "1"), ("NCCL_IB_HCA", "a, b")),
        ),
    )


def test_setup_of_a_host_is_a_quoted_command_line() -> None:
    text = """a setup='module load cuda; source "$HOME/my env/bin/activate"  # twice'   # the big one\nb setup=x=1"""
    found = parse_hosts(text, "hosts")
    assert [node.setup for node in found] == ['module load cuda; source "$HOME/my env/bin/activate"  # twice', "x=1"]
    assert parse_gpus("a\na setup='x y'\na setup='x y'", "gpus")[0][0].setup == "x y"


@fuzzed(st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="'") | st.just(" "), min_size=1))
def test_any_setup_in_quotes_is_read_as_it_is(text: str) -> None:
    line = f"a slots=2 setup='{text}' port=22"
    error = refusal(InventoryError, lambda: parse_hosts(line, "hosts"))
    assert error is None or "contains the value of" in error.message
    if error is None:
        (node,) = parse_hosts(line, "hosts")
        assert (node.setup, node.port) == (text, 22)


def test_an_unknown_key_is_kept_as_a_label_and_noted() -> None:
    found = hosts_from_lines(lines_of("a slots=4 type=gpu rack='r 1'\nb slots=\"2\"", "hosts"), "hosts")
    assert [(node.slots, node.labels) for node in found.nodes] == [(4, (("type", "gpu"), ("rack", "r 1"))), (2, ())]
    assert found.notes == tuple(
        f"hosts:1: {key}= is not a key of torchfab: kept as a label" for key in ("type", "rack")
    )


def test_a_drained_host_is_left_out_and_noted() -> None:
    found = hosts_from_lines(lines_of("a slots=0\nb", "hosts"), "hosts")
    assert ([node.host for node in found.nodes], found.notes) == (["b"], ("hosts:1: slots=0: a is not used",))


def test_names_of_a_host_differ_in_more_than_letters_case_and_zeros() -> None:
    assert "hosts:2: node1 is the same host as NODE1 in hosts:1" in message("NODE1\nnode1")
    assert "hosts:2: fd00::1 is already listed in hosts:1" in message("[fd00::1]\n[fd00:0:0::1]")


@pytest.mark.parametrize(("line", "local"), [("localhost", True), ("localhost:22", False), ("ann@localhost", False)])
def test_localhost_alone_is_reached_without_ssh(line: str, local: bool) -> None:
    assert [node.is_local for node in parse_hosts(line, "hosts")] == [local]


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("GPU-8932f937-d72c,1", ("GPU-8932f937-d72c", "1")),
        ("MIG-GPU-8932f937/1/0", ("MIG-GPU-8932f937/1/0",)),
        ("0-3", ("0", "1", "2", "3")),
        ("0-1,6,3-3", ("0", "1", "6", "3")),
        ('"2,3"', ("2", "3")),
    ],
)
def test_gpus_names_devices_by_index_range_or_uuid(text: str, devices: tuple[str, ...]) -> None:
    assert parse_hosts(f"a gpus={text}", "hosts")[0].gpus == devices


TWICE = "a host is listed once in a hosts file; write slots=N for more processes on it"
A_LIST = "write one host per line, or a list"
NOT_CLOSED = "a bracket is not closed: ranges are written as node[01-16]"
NO_SHELL = "no shell reads this file: write the names themselves"
COUNTED = "a number of processes is written with its key"
IS_PATH = "it is a path: this file names hosts; --hostfile names the file"
A_COMMENT = "a comment begins with #; this file has one host a line"
DNS_LENGTH = "between its dots, a name has 1 to 63 characters, and at most 253 in all"
UNSEEN = "which is invisible: remove it, or type the line again"
# What is no host name, and what to write instead.
NO_HOST = {
    "it's": EXPECTED,
    "a-": EXPECTED,
    ".a": EXPECTED,
    "{x}": EXPECTED,
    "-oProxyCommand=id": "a host name does not begin with a dash",
    "-node1": "a host name does not begin with a dash",
    "a;b": f"{A_LIST}: a,b",
    "$x": NO_SHELL,
    "`id`": NO_SHELL,
    "node[1": NOT_CLOSED,
    "node1]": NOT_CLOSED,
    "node[a-c]": "a range of letters is written as node{a..c}",
    "node*": "patterns are not expanded: write a range, node[01-16], or each host",
    "é": "write its ASCII form: xn--9ca",
    "node１": "write its ASCII form: node1",
    '"a"': "write it without quotes: a",
    "“a”": "quotes are written as ' or \", and only around the value of a key",
    "a\0": f"it contains U+0000 (a control character), {UNSEEN}",
    "\u200bnode1": f"it contains U+200B (ZERO WIDTH SPACE), {UNSEEN}",
    "a*4": f"{COUNTED}: a slots=4",
    "a(8)": f"{COUNTED}: a slots=8",
    "a(x8)": f"{COUNTED}: a slots=8",
    "10.0.0.0/30": "it is a network: write its hosts as a range: 10.0.0.[1-4]",
    "/etc/hosts": IS_PATH,
    "~/hosts": IS_PATH,
    "//": A_COMMENT,
    "<!--": A_COMMENT,
    "*": "write the names alone, without a bullet in front",
    "http://a:8080/x": "it is a URL: write the host alone: a",
    "http://me@a": "it is a URL: write the host alone: a",
    "a..lan": DNS_LENGTH,
}
NO_PORT = "it has no port: address=b; port= is that of SSH"
OUR_KEY = "write them with our key"
CONTINUED = "a line is not continued: write the keys of a host on its own line"
FROM_ROOT = "write it from the root: python=/home/me/venv/bin/python"
WRONG_HOSTS = [
    ("", "hosts: names no host", EXPECTED),
    ("# a\n\n  # b\n", "hosts: names no host", EXPECTED),
    ("a\nb\n\na\n", "hosts:4: a is already listed in hosts:1", TWICE),
    ("n[1-3]\nann@n2", "hosts:2: n2 is already listed in hosts:1", TWICE),
    ("a cores=2", "hosts:1: unknown key 'cores' in 'cores=2'", f"write slots=2; {HOST_KEYS}"),
    ("a slot=2", "hosts:1: unknown key 'slot' in 'slot=2'", f"write slots=2; {HOST_KEYS}"),
    ("a GPUS=2", "hosts:1: unknown key 'GPUS' in 'GPUS=2'", f"write gpus=2; {HOST_KEYS}"),
    ("a ip=10.0.0.2", "hosts:1: unknown key 'ip' in 'ip=10.0.0.2'", f"write address=10.0.0.2; {HOST_KEYS}"),
    ("a =2", "hosts:1: unknown key '' in '=2'", HOST_KEYS),
    ("a b", "hosts:1: unknown key 'b' in 'b'", "write a second host on its own line, or after a comma: a,b"),
    ("a 4", "hosts:1: unknown key '4' in '4'", "write a number of processes with its key: a slots=4"),
    (
        "a 10.0.0.2",
        "hosts:1: unknown key '10.0.0.2' in '10.0.0.2'",
        "write an address for the other nodes with its key: a address=10.0.0.2",
    ),
    ("a slots", "hosts:1: unknown key 'slots' in 'slots'", HOST_KEYS),
    ("a slots=0", "hosts: names no host; every line has slots=0", EXPECTED),
    ("a,4", "hosts:1: '4' in 'a,4' is not a host name", "in a list of hosts, write slots=N after it"),
    (
        "a:2:mlx5_0",
        "hosts:1: 'a:2:mlx5_0' has two colons",
        "for MVAPICH's host:processes:device, write a slots=2",
    ),
    ("b@a user=c", "hosts:1: a has the user b, and user=c", "give the user once"),
    ("a:22 port=23", "hosts:1: a has the port 22, and port=23", "give the port once"),
    (
        "a workdir=b",
        "hosts:1: workdir=b: not an absolute path",
        "write it from the root, for example workdir=/home/me/project",
    ),
    (
        "a env.RANK=1",
        "hosts:1: env.RANK=: the launcher sets RANK",
        "leave it out; ranks follow the order of the lines",
    ),
    (
        "a env.MY_TOKEN=x",
        "hosts:1: env.MY_TOKEN=: a secret must not be in a hosts file: records and dry runs would show it",
        "export MY_TOKEN here; the setting torchfab.forward selects the variables to forward",
    ),
    (
        "a setup='module load x; export HF_TOKEN=hf_123'",
        "hosts:1: setup= contains the value of HF_TOKEN, which records and dry runs would show",
        "read the value there: HF_TOKEN=$(cat FILE); or export HF_TOKEN here, and give --env HF_TOKEN",
    ),
    ("a env.2=x", "hosts:1: env.2=: '2' cannot name an environment variable", EXPECTED),
    (
        "ann@corp@a",
        "hosts:1: 'ann@corp' is not a user name",
        "configure such a name in ssh's configuration: Host NAME, then User NAME",
    ),
    ("a slots=", "hosts:1: slots= needs a value, got 'slots='", EXPECTED),
    ("a slots=1 slots=2", "hosts:1: slots= is given twice, the second time as 'slots=2'", "leave one of them out"),
    ("a env.A=1 env.A=2", "hosts:1: env.A= is given twice, the second time as 'env.A=2'", "leave one of them out"),
    ("a address=x;y", "hosts:1: 'x;y' is not a host name or address", f"{A_LIST}: x,y"),
    (
        "n[1-2] address=10.0.0.1",
        "hosts:1: address= is for one node, and this line names several",
        "write those nodes on separate lines",
    ),
    ("[::1]:0", "hosts:1: '0' is not a port", "a port is a number from 1 to 65535"),
    ("a:slots=2", "hosts:1: 'slots=2' is not a port", "write a space instead of the colon: HOST slots=2"),
    ("10.0.0.300", "hosts:1: '10.0.0.300' is not an IPv4 address", EXPECTED),
    ("10.0.0", "hosts:1: '10.0.0' is not an IPv4 address", EXPECTED),
    ("10.0.0.1-4", "hosts:1: '10.0.0.1-4' is not an IPv4 address", "write 10.0.0.[1-4]"),
    ("[:::x]", "hosts:1: ':::x' is not an IPv6 address", EXPECTED),
    ("fd00::1", "hosts:1: 'fd00::1' looks like an IPv6 address without brackets", "write [fd00::1]"),
    ("-oProxyCommand=id@a", "hosts:1: '-oProxyCommand=id' is not a user name", EXPECTED),
    *((f"fine\n{host}", f"hosts:2: {host!r} is not a host name", fix) for host, fix in NO_HOST.items()),
    (f"{'n' * 64}", f"hosts:1: {'n' * 40!r}… is not a host name", DNS_LENGTH),
    ("a:ppn=4", "hosts:1: 'ppn=4' is not a port, but PBS's notation of processes per node", f"{OUR_KEY}: a slots=4"),
    ("a:np=4:gpus=2", "hosts:1: 'a:np=4:gpus=2' is not a host name", f"{COUNTED}: a slots=4"),
    ("a:", "hosts:1: '' is not a port", "leave the colon out, or write the port: node1:2222"),
    ("a slots:8", "hosts:1: unknown key 'slots:8' in 'slots:8'", "a key stands in front of =: slots=8"),
    ("a x8", "hosts:1: unknown key 'x8' in 'x8'", f"{COUNTED}: a slots=8"),
    ("1. a", "hosts:1: unknown key 'a' in 'a'", "write the name alone, without a number in front: a"),
    ("a \\", "hosts:1: unknown key '\\\\' in '\\\\'", CONTINUED),
    ("a setup=“b c”", "hosts:1: “ in 'setup=“b' is no quote here", "write ' or \""),
    ("a env.A='b", "hosts:1: the quote ' in \"env.A='b\" is not closed", "end the value with '"),
    ("a env.=b", "hosts:1: 'env.=b' names no variable", "write env.NAME=value"),
    (
        "a address=b:22",
        "hosts:1: 'b:22' is not a host name or address",
        NO_PORT,
    ),
    ("a python=~/b", "hosts:1: python=~/b: not an absolute path", FROM_ROOT),
    ("a gpus=all", "hosts:1: gpus=all: not a list of devices", "leave gpus= out: without it, all devices are used"),
    ("a gpus=3-0", "hosts:1: gpus=3-0: not a list of devices", "a range begins with the lower number: gpus=0-3"),
    ("a gpus=cuda:0", "hosts:1: gpus=cuda:0: not a list of devices", "devices are numbers here: gpus=0"),
    *(
        (
            f"\na slots={value}",
            f"hosts:2: slots={value}: not a number of processes",
            "give the number of processes to run there, for example slots=8",
        )
        for value in ("-1", "x", "1.5", "1025", "²")
    ),
    *(
        (
            f"a gpus={value}",
            f"hosts:1: gpus={value}: not a list of devices",
            "name each device once, for example gpus=2,3 or gpus=0-3; or slots=4",
        )
        for value in ("1,1", "1,", ",", "a;b", "$x", "0-2000", "0-2,1", "-3")
    ),
    *(
        (f"a:{port}", f"hosts:1: {port!r} is not a port", "a port is a number from 1 to 65535")
        for port in ("0", "65536", "ssh", "-1", "٣", "9" * 5000)
    ),
]


@pytest.mark.parametrize(("text", "problem", "fix"), WRONG_HOSTS)
def test_hosts_errors_name_file_line_and_expectation(text: str, problem: str, fix: str) -> None:
    assert message(text) == f"{problem}\n  fix: {fix}"


@pytest.mark.parametrize("host", ["n[3-1]", "n[01-3]", "n[,]", "n[-]", "n[1--3]", "n[/]", "n[1-3/0]", "n[1][2]"])
def test_an_error_names_a_bad_range_and_its_line(host: str) -> None:
    error = message(f"a\n{host}")
    assert error.startswith(f"hosts:2: bad range {host!r}: ")
    assert error.endswith("\n  fix: write ranges as node[01-16] or node[1,3,7-9]")


@pytest.mark.parametrize("host", ["n[0-10000]", "n[0-9999]m[0-9999]", "n[1-99999999999999]", f"n[{'9' * 5000}]"])
def test_a_too_large_range_is_rejected_before_expansion(host: str) -> None:
    assert message(host) == f"hosts:1: the range {host} has more than {MAX_HOSTS} hosts\n  fix: {EXPECTED}"


def test_the_largest_range_is_accepted() -> None:
    assert len(hosts_of("n[0-9999]")) == MAX_HOSTS


def test_the_hosts_flag_is_split_at_commas_outside_ranges() -> None:
    assert [(node.host, node.port, node.origin) for node in parse_hosts_flag("n[1,3],b:22,[::1]:5")] == [
        ("n1", None, "-H"),
        ("n3", None, "-H"),
        ("b", 22, "-H"),
        ("::1", 5, "-H"),
    ]


# ---- gpus


def test_ranks_follow_lines_and_local_ranks_count_per_host() -> None:
    nodes, slots = parse_gpus("b\na\nb\n# more\na\nb\n", "gpus")
    assert nodes == (Node(0, "b", origin="gpus:1"), Node(1, "a", origin="gpus:2"))
    assert slots == (Slot(0, 0, 0), Slot(1, 1, 0), Slot(2, 0, 1), Slot(3, 1, 1), Slot(4, 0, 2))


def test_each_named_device_is_one_slot_in_order() -> None:
    nodes, slots = parse_gpus("a gpus=2,3\nb gpus=0\na gpus=7", "gpus")
    assert nodes == (Node(0, "a", gpus=("2", "3", "7"), origin="gpus:1"), Node(1, "b", gpus=("0",), origin="gpus:2"))
    assert slots == (Slot(0, 0, 0), Slot(1, 0, 1), Slot(2, 1, 0), Slot(3, 0, 2))


def test_user_and_address_may_be_on_any_line_of_a_host_in_gpus() -> None:
    nodes, _ = parse_gpus("a\nann@a address=10.0.0.1\nann@a\n", "gpus")
    assert [(node.user, node.address) for node in nodes] == [("ann", "10.0.0.1")]


@pytest.mark.parametrize("text", ["ann@a\nbob@a", "a address=10.0.0.1\na address=10.0.0.2"])
def test_two_users_or_addresses_of_a_host_in_gpus_are_rejected(text: str) -> None:
    with pytest.raises(InventoryError, match=r"gpus:2: a has the (user|address) \S+ on another line, and \S+ here"):
        parse_gpus(text, "gpus")


def test_a_range_in_gpus_is_one_slot_on_each_of_its_hosts() -> None:
    nodes, slots = parse_gpus("n[1-2]\nn[1-2]", "gpus")
    assert [node.host for node in nodes] == ["n1", "n2"]
    assert slots == (Slot(0, 0, 0), Slot(1, 1, 0), Slot(2, 0, 1), Slot(3, 1, 1))


SOME_LINES = "write gpus=N on all of its lines, or on none"
WRONG_GPUS = [
    ("", "gpus: names no host", EXPECTED),
    ("a slots=2", "gpus:1: unknown key 'slots' in 'slots=2'", PROCESS_KEYS),
    (
        "a setup=x\na setup=y",
        "gpus:2: a has the setup x on another line, and y here",
        "give the same value on all lines of a host",
    ),
    (
        "a env.A=1\na env.A=2",
        "gpus:2: a has a different env. value on another line",
        "give a variable one value per host",
    ),
    ("a gpus=1\nb\na gpus=1", "gpus:3: device 1 of a is named twice", "one line per device"),
    ("a gpus=1\na", "gpus:2: a has gpus= on some lines only", SOME_LINES),
    ("a\na gpus=1", "gpus:2: a has gpus= on some lines only", SOME_LINES),
    ("a\nb c", "gpus:2: unknown key 'c' in 'c'", "write a second host on its own line, or after a comma: b,c"),
]


@pytest.mark.parametrize(("text", "problem", "fix"), WRONG_GPUS)
def test_gpus_errors_name_file_and_line(text: str, problem: str, fix: str) -> None:
    with pytest.raises(InventoryError) as caught:
        parse_gpus(text, "gpus")
    assert str(caught.value) == f"{problem}\n  fix: {fix}"


@given(st.lists(st.sampled_from(["a", "b", "c", "ann@d:22", "[::1]"]), min_size=1, max_size=40))
def test_slots_are_consistent_for_any_order_of_lines(lines: list[str]) -> None:
    nodes, slots = parse_gpus("\n".join(lines), "gpus")
    assert [slot.rank for slot in slots] == list(range(len(lines)))
    assert [node.rank for node in nodes] == list(range(len(nodes)))
    expected = [parse_hosts(line, "x")[0].label for line in lines]
    assert [nodes[slot.node_rank].label for slot in slots] == expected
    assert [slot.local_rank for slot in slots] == [
        expected[:index].count(label) for index, label in enumerate(expected)
    ]


# ---- any text

HOST_CHARS = st.text("ab019-_.:@[]/,=%# \n\r\t'$;é\ufeff\u2028", max_size=40)


@fuzzed(st.one_of(st.text(max_size=200), HOST_CHARS, st.sampled_from(list(HOSTILE.values()))))
def test_any_text_is_parsed_or_rejected_as_an_inventory(text: str) -> None:
    for parse in (lambda: parse_hosts(text, "x"), lambda: parse_gpus(text, "x"), lambda: parse_hosts_flag(text)):
        try:
            parse()
        except InventoryError as refused:
            error = refused
        else:
            continue
        assert error.message.startswith(("x:", "-H"))


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in UTF8.items()])
def test_a_hostile_text_names_no_host(text: str) -> None:
    with pytest.raises(InventoryError, match=r"^hosts(:\d+)?: "):
        parse_hosts(f"{text}é", "hosts")


@fuzzed(st.one_of(st.text(max_size=30), st.text("0123456789,- ", max_size=30)))
def test_any_text_is_parsed_or_rejected_as_ranks(text: str) -> None:
    try:
        parse_ranks(text)
    except InventoryError as refused:
        error = refused
    else:
        return
    assert error.message.startswith("--rank ")


# ---- folding


@given(st.sets(st.integers(0, 5000), min_size=1))
def test_folded_ranks_can_be_parsed(ranks: set[int]) -> None:
    assert parse_ranks(fold_ranks(list(ranks))) == tuple(sorted(ranks))


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([], ""), ([3], "3"), ([0, 1], "0-1"), ([5, 2, 1, 0, 0], "0-2,5"), (range(64), "0-63"), ([1, 3, 5], "1,3,5")],
)
def test_ranks_are_folded_into_ranges(ranks: list[int], text: str) -> None:
    assert fold_ranks(ranks) == text


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "1;2", "1-2-3", "9" * 5000])
def test_invalid_ranks_are_rejected(text: str) -> None:
    with pytest.raises(InventoryError, match=r"--rank .* is not a rank\n  fix: write ranks as 0,2-5"):
        parse_ranks(text)


@given(st.sets(st.from_regex(r"[a-z]{1,3}(-?[0-9]{1,3}){0,2}(\.[a-z]{1,3})?", fullmatch=True), min_size=1, max_size=20))
def test_folded_hosts_can_be_parsed(hosts: set[str]) -> None:
    assert {node.host for node in parse_hosts_flag(fold(sorted(hosts)))} == hosts


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        ([], ""),
        (["node1"], "node1"),
        ([f"node{number:03}" for number in range(1, 65)], "node[001-064]"),
        (["a", "node2", "node1"], "a,node[1-2]"),
        (["node1:22", "node2:22"], "node1:22,node2:22"),
        (["::1", "a"], "::1,a"),
    ],
)
def test_hosts_are_folded_into_ranges(hosts: list[str], text: str) -> None:
    assert fold(hosts) == text


def test_make_nodes_equals_a_parsed_file() -> None:
    assert make_nodes("a", {"host": "b", "slots": 2}) == parse_hosts("a\nb slots=2", "hosts")
