"""Foreign text that the launch machine reads: any text is handled, and no output has control characters."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
from hypothesis import strategies as st
from paramiko.message import Message

from tests.hostile import names, texts
from tests.remote.test_texts import WORD
from tests.support import fuzzed, refusal
from tests.transport.test_messages_fuzz import JSON
from torchfab.config import validate
from torchfab.core import console, dry_run, environment
from torchfab.core.errors import HostError, TorchfabError, UsageError
from torchfab.core.inventory import fold
from torchfab.core.specs import Node
from torchfab.core.status import as_json, table_rows
from torchfab.network import report
from torchfab.runtimes.kubernetes import client, log_lines
from torchfab.runtimes.kubernetes.status import JobSnapshot, job_status, parse_time
from torchfab.runtimes.slurm.state import _code
from torchfab.supervise import notifier
from torchfab.supervise.quarantine import FILE, Quarantine
from torchfab.sync import rsync
from torchfab.transport.ssh import host_certificates
from torchfab.transport.ssh.config import Block, ClientIdentity, Option, parse_line
from torchfab.transport.ssh.config_index import Indexed
from torchfab.transport.ssh.route import key_files, route_to

# ---- flags, and settings


@fuzzed(st.lists(st.one_of(texts(), st.builds("{}={}".format, names(), texts())), max_size=4))
def test_any_env_flag_is_read_or_is_an_error(pairs: list[str]) -> None:
    if error := refusal(UsageError, lambda: environment.parse_env_flags(pairs)):
        assert error.message.startswith("--env")
        return
    env = environment.parse_env_flags(pairs)
    assert env == {pair.partition("=")[0]: pair.partition("=")[2] for pair in pairs}
    assert all(name.isascii() and name.isidentifier() for name in env)


@fuzzed(texts(80), st.lists(st.sampled_from(["RUN", "RUN1", "RUN2", "x"]), max_size=4))
def test_no_text_ends_its_here_document(text: str, lines: list[str]) -> None:
    whole = "\n".join([text, *lines])
    assert dry_run._delimiter("RUN", whole) not in whole.split("\n")


SETTINGS = ("fanout", "restarts", "connect_timeout_s", "grace_s", "hostfile", "script", "stacks_signal", "x")


@fuzzed(st.dictionaries(st.sampled_from(SETTINGS), st.one_of(JSON, st.lists(texts(9), max_size=2), texts(9))))
def test_settings_are_accepted_or_named_in_the_error(config: dict[str, Any]) -> None:
    if error := refusal(UsageError, lambda: validate.check(config)):
        assert error.message.startswith("torchfab.")
        return
    assert all(0 <= config[name] <= 1e9 for name in ("fanout", "restarts", "grace_s") if name in config)


# ---- ssh

OPTIONS = st.sampled_from(
    [
        *(
            "Host ",
            "Match ",
            "Match host ",
            "Match user ",
            "HostName ",
            "Port ",
            "User ",
            "ProxyJump ",
            "ProxyCommand ",
        ),
        *("IdentityFile ", "CertificateFile ", "ConnectTimeout ", "UserKnownHostsFile ", "StrictHostKeyChecking ", ""),
    ]
)
VALUES = st.one_of(
    WORD, texts(12), st.sampled_from(["*", "!a", "%h", "%%", "%", "a,b", "a:22", "[::1]:22", "${X}", "1h9"])
)


@fuzzed(st.lists(st.tuples(OPTIONS, VALUES), max_size=6), st.sampled_from(["a", "b.lab", "::1"]))
def test_any_ssh_config_gives_a_route_or_an_error(lines: list[tuple[str, str]], host: str) -> None:
    client_identity = ClientIdentity("ann", "here.lab", run=lambda _: False)
    with contextlib.suppress(TorchfabError):
        config = Indexed(options_of("\n".join(name + value for name, value in lines)))
        route = route_to(config, host, client_identity)
        assert 0 < route.port < 65536
        assert route.connect_timeout_s >= 0
        key_files(route, ())


def options_of(text: str) -> Iterator[Option]:
    """Read a config without Include, as `config.read` does a file."""
    block: tuple[Block, ...] = ()
    for number, line in enumerate(text.split("\n"), 1):
        name, words = parse_line(line, f"config:{number}") or ("", ())
        if name in ("host", "match"):
            block = (Block(name, words, f"config:{number}"),)
        elif name:
            yield Option(name, words, f"config:{number}", block)


def certificate(name: str, principals: list[str]) -> bytes:
    """Return the bytes of a host certificate whose signature is wrong."""
    message = Message()
    message.add_string("ssh-ed25519-cert-v01@openssh.com")
    for each in (b"nonce", b"k" * 32):
        message.add_string(each)
    message.add_int64(1)
    message.add_int(2)
    message.add_string(name)
    listed = Message()
    for principal in principals:
        listed.add_string(principal)
    message.add_string(listed.asbytes())
    message.add_int64(0)
    message.add_int64((1 << 64) - 1)
    for part in (b"", b"", b"", b"authority", b"signature"):
        message.add_string(part)
    return message.asbytes()


@fuzzed(st.text(max_size=9), st.lists(st.text(max_size=9), max_size=2), st.integers(0, 400), st.binary(max_size=30))
def test_any_host_certificate_is_read_or_rejected(name: str, principals: list[str], cut: int, other: bytes) -> None:
    whole = certificate(name, principals)
    read = host_certificates.read(whole)
    assert (read.key_id, read.principals) == (name, tuple(principals))
    assert host_certificates.rejection_reason(read, "a", 9.0)
    for blob in (other, whole[:cut], whole[:cut] + other + whole[cut + len(other) :]):
        with contextlib.suppress(ValueError):
            assert isinstance(host_certificates.rejection_reason(host_certificates.read(blob), "a", 9.0), str)


@fuzzed(texts(80), st.dictionaries(st.sampled_from(["node1", "node2"]), texts(40), min_size=1))
def test_no_error_prints_control_characters(text: str, reasons: dict[str, str]) -> None:
    lines: list[str] = []
    with mock.patch("builtins.print", lambda line, **_: lines.append(line)):
        console.write_err(text)
        console.print_error(HostError(text, text, "node1"))
    assert len(lines) == 2
    assert not [sign for line in lines for sign in line if ord(sign) < 32 and sign not in "\t\n"]


# ---- local programs


@fuzzed(st.binary(max_size=80))
def test_any_list_of_rsync_is_read(output: bytes) -> None:
    assert all(name and not name.endswith("/") for name in rsync.parse_list(output))


@fuzzed(st.one_of(st.text(max_size=80), st.builds("Number of files transferred: {}".format, WORD)), st.integers(0, 300))
def test_any_output_of_rsync_is_handled(text: str, code: int) -> None:
    assert rsync.parse_stats(text).files >= 0
    assert str(rsync.copy_error(code, text))


# ---- schedulers


@fuzzed(st.one_of(st.builds("{}:{}".format, WORD, WORD), st.text(max_size=9)))
def test_any_exit_code_of_slurm_is_parsed(text: str) -> None:
    code = _code(text)
    assert code is None or code > 0


@fuzzed(st.binary(max_size=120), st.lists(st.tuples(WORD, WORD), max_size=4))
def test_any_bytes_of_a_pod_log_are_read(data: bytes, ranks: list[tuple[str, str]]) -> None:
    marked = "".join(f"2026-01-01T00:00:0{index}Z [rank{one}]:{two}\n" for index, (one, two) in enumerate(ranks))
    blocks = [data, marked.encode("utf-8", "replace"), data]
    for label, when, text in log_lines.PodLogReader(0, {"ranks": None, "grep": None, "lines": None}).read_backlog(
        blocks
    ):
        assert isinstance(label, int) or label == log_lines.AGENT
        assert when >= 0
        assert "\n" not in text


def pod(message: str, reason: str, code: int) -> Mapping[str, Any]:
    ended = {"exitCode": code, "reason": reason, "message": message, "finishedAt": reason, "startedAt": message}
    container = {"name": "torchfab", "state": {"terminated": ended}}
    meta = {"name": "x-0", "creationTimestamp": message, "labels": {"batch.kubernetes.io/job-completion-index": "0"}}
    spec = {"nodeName": reason, "containers": [{"image": message}]}
    return {"metadata": meta, "spec": spec, "status": {"phase": "Failed", "message": message, "reason": reason,
                                                       "containerStatuses": [container]}}  # fmt: skip


@fuzzed(st.one_of(texts(80), JSON.map(json.dumps)), texts(20), st.integers(0, 300))
def test_any_termination_message_of_a_pod_is_handled(message: str, reason: str, code: int) -> None:
    snapshot = JobSnapshot({"metadata": {"name": "x"}, "spec": {}, "status": {}}, [pod(message, reason, code)], now=9.0)
    details = {"ranks_per_node": 2, "max_restarts": 0, "queue": ""}
    found = job_status([Node(0, "x-0")], snapshot, details, None)
    assert json.dumps([table_rows(found), as_json("x", found)])


@fuzzed(st.one_of(st.binary(max_size=60), JSON.map(json.dumps).map(str.encode)))
def test_any_error_text_of_a_cluster_is_handled(body: bytes) -> None:
    cluster = client.Cluster.__new__(client.Cluster)
    cluster.scope, cluster.server = client.ClusterScope("", "x", "y"), "https://x"
    for status in (401, 404, 500, 999):
        error = cluster._rejection(status, body, "/jobsets")
        assert len(error.message) < 1000
    assert parse_time(body.decode(errors="replace")) is None or body[:1].isdigit()


# ---- output of jobs, and stored files

MEASURED = ("hello", "size", "round", "done")


RESULT = st.fixed_dictionaries(
    {"kind": st.sampled_from(MEASURED), **dict.fromkeys(("pairs", "rounds", "round", "ranks", "backend"), JSON)}
)


@fuzzed(st.lists(st.one_of(JSON, RESULT), max_size=4), st.text(max_size=30))
def test_an_invalid_network_result_is_ignored(lines: list[Any], rubbish: str) -> None:
    hello = {"kind": "hello", "ranks": 2, "backend": "gloo", "interfaces": [], "settings": {}}
    found = report.BenchmarkResult(nodes=2)
    for text in (json.dumps(hello), *map(json.dumps, lines), rubbish):
        found.feed(report.MARK + text)
    hosts = ["node1", "node2"]
    assert report.render(found, hosts)
    assert json.dumps(report.as_json(found, hosts))


@fuzzed(st.one_of(st.text(max_size=30), JSON.map(json.dumps), st.dictionaries(
    st.text(max_size=5), st.fixed_dictionaries({"reason": JSON, "time": JSON, "job": JSON}), max_size=3
).map(json.dumps)))  # fmt: skip
def test_any_list_of_lemons_is_read_or_is_an_error(text: str) -> None:
    with TemporaryDirectory() as root:
        Path(root, FILE).write_text(text, encoding="utf-8", errors="replace")
        if error := refusal(TorchfabError, lambda: Quarantine(Path(root)).all()):
            assert "move it away" in str(error)
            return
        found = Quarantine(Path(root)).all()
    assert all(0 <= lemon.time < 1e11 for lemon in found.values())
    assert fold(list(found)) or not any(found)


@fuzzed(st.sampled_from(["http://", "https://", ""]), st.text("abc:@/?#.", max_size=12))
def test_secrets_in_addresses_are_hidden(scheme: str, rest: str) -> None:
    shown = notifier._name(f"{scheme}ann:s3cret@{rest}")
    assert "s3cret" not in shown or not scheme
    assert shown.startswith(scheme)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("https://hooks.lab/T0/secret", "https://hooks.lab"),
        ("https://ann:s3cret@hooks.lab:8443?token=x", "https://hooks.lab:8443"),
        ("mail -s failed me", "mail -s failed me"),
    ],
)
def test_a_notifier_is_named_by_its_host(target: str, expected: str) -> None:
    assert notifier._name(target) == expected
