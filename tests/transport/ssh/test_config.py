"""ssh's configuration, compared with the output of `ssh -G`."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.hostile import texts
from tests.support import fuzzed, require
from torchfab.core.errors import HostError, TorchfabError, UsageError
from torchfab.transport.ssh import config
from torchfab.transport.ssh.config import ClientIdentity
from torchfab.transport.ssh.route import Route, default_keys, key_files, parse_hop, route_to

CLIENT = ClientIdentity("ann", "launch.lab", lambda command: command == "true")


def route(folder: Path, text: str, host: str = "node1", **given: Any) -> Route:
    """Return the route to a host with a given configuration."""
    path = folder / "config"
    path.write_text(text)
    return route_to(config.read(str(path)), host, CLIENT, **given)


def by_openssh(path: Path, host: str, *names: str) -> dict[str, list[str]]:
    done = subprocess.run([require("ssh"), "-G", "-F", str(path), host], capture_output=True, text=True, check=True)
    pairs = [line.partition(" ") for line in done.stdout.splitlines()]
    return {name: [value for key, _, value in pairs if key == name] for name in names}


LINES = st.sampled_from(
    [
        *("Host node1", "Host node*", "Host *", "Host !node1 *", "Host other", "Host node? other", 'Host "node1"'),
        *("Match all", "Match host node1", "Match host !node1,*", "Match originalhost node1", "Match !host node1"),
        *("Match user bob", "Match exec true", "Match exec false", "Match host a.lab user bob", "Match final all"),
        *("HostName a.lab", "HostName %h.lab", "hostname=b.lab", "User bob", "User = carl", "Port 2222", "PORT 23"),
        *("HostKeyAlias alias", "IdentityFile ~/.ssh/one", 'IdentityFile "/a b/c"', "IdentitiesOnly yes # why"),
        *("ConnectTimeout 7", "  StrictHostKeyChecking no", "\tProxyJump hop", "# a comment", "", "HashKnownHosts yes"),
        *("UserKnownHostsFile /one /two", 'UserKnownHostsFile "/o n e" /two', "Include one", "Include two"),
    ]
)
COMPARED = ("hostname", "user", "port", "hostkeyalias", "identityfile", "stricthostkeychecking", "userknownhostsfile")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(LINES, max_size=10),
    st.lists(LINES, max_size=4),
    st.lists(LINES, max_size=3),
    st.sampled_from(["node1", "other"]),
)
@example(["IdentityFile ~/.ssh/one", "Include one"], ["IdentityFile ~/.ssh/one"], [], "node1")  # a file named twice
def test_config_is_parsed_as_openssh_parses_it(
    tmp_path: Path, lines: list[str], one: list[str], two: list[str], host: str
) -> None:
    def absolute(lines: list[str]) -> str:
        return "\n".join(line.replace("Include ", f"Include {tmp_path}/") for line in lines) + "\n"

    (tmp_path / "one").write_text(absolute([line for line in one if "Include" not in line]))
    (tmp_path / "two").write_text(absolute([line for line in two if line != "Include two"]))
    path = tmp_path / "config"
    path.write_text(absolute(lines) + "Host *\nUser ann\n")
    theirs = by_openssh(path, host, *COMPARED)
    ours = route_to(config.read(str(path)), host, ClientIdentity("ann", "launch.lab"))
    assert [ours.host, ours.user, str(ours.port)] == [*theirs["hostname"], *theirs["user"], *theirs["port"]]
    assert ours.options.value("hostkeyalias") == "".join(theirs["hostkeyalias"])
    if files := ours.options.values("identityfile"):
        assert list(files) == theirs["identityfile"]
    if known := ours.options.values("userknownhostsfile"):
        assert theirs["userknownhostsfile"] == [" ".join(known)]
    assert ("false" in theirs["stricthostkeychecking"]) is (ours.options.value("stricthostkeychecking") == "no")


@fuzzed(texts(200))
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    for line in text.split("\n"):
        with contextlib.suppress(UsageError):
            parsed = config.parse_line(line, "config:1")
            assert parsed is None or (parsed[0] and parsed[1])


@fuzzed(texts(40))
def test_any_jump_host_is_parsed_or_rejected(text: str) -> None:
    with contextlib.suppress(HostError):
        assert parse_hop(text)[1]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hop", ("", "hop", None)),
        ("ann@hop:2222", ("ann", "hop", 2222)),
        ("ssh://ann@hop:2222/", ("ann", "hop", 2222)),
        ("fd00::1", ("", "fd00::1", None)),
        ("[fd00::1]:22", ("", "fd00::1", 22)),
        ("a@b@hop", ("a@b", "hop", None)),
    ],
)
def test_parse_hop_accepts_all_forms(text: str, parts: tuple[str, str, int | None]) -> None:
    assert parse_hop(text) == parts


def test_jump_hosts_are_used_in_the_configured_order(tmp_path: Path) -> None:
    found = route(tmp_path, "Host node1\n ProxyJump first,ann@second:23\nHost second\n User bob\n HostName s.lab\n")
    (second,) = found.jumps
    (first,) = second.jumps
    assert (second.name, second.host, second.user, second.port) == ("second", "s.lab", "ann", 23)
    assert (first.name, first.jumps) == ("first", ())


def test_a_jump_host_may_have_its_own_jump_host(tmp_path: Path) -> None:
    found = route(tmp_path, "Host node1\n ProxyJump a\nHost a\n ProxyJump b\n")
    assert [hop.name for hop in found.jumps[0].jumps] == ["b"]


def test_a_global_jump_host_is_reached_directly(tmp_path: Path) -> None:
    assert route(tmp_path, "ProxyJump hop", "hop").jumps == ()


def test_a_cycle_of_jump_hosts_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="circle"):
        route(tmp_path, "Host node1 b\n ProxyJump a\nHost a\n ProxyJump b\n")


@pytest.mark.parametrize("none", ["ProxyJump none\nProxyJump hop", "ProxyCommand none\nProxyJump hop"])
def test_none_overrides_later_proxy_options(tmp_path: Path, none: str) -> None:
    found = route(tmp_path, none)
    assert (found.jumps, found.proxy_command) == ((), "")


def test_proxy_command_is_one_value_with_expanded_tokens(tmp_path: Path) -> None:
    found = route(tmp_path, "Host node1\nHostName 10.0.0.1\nProxyCommand nc -x 'a  b' %h %p # %% %n %r", port=2222)
    assert found.proxy_command == "nc -x 'a  b' 10.0.0.1 2222 # % node1 ann"


@pytest.mark.parametrize("text", ["", "Match host fe80::1%eth0\n  Port 22"])
def test_the_zone_of_an_ipv6_address_is_not_a_token(tmp_path: Path, text: str) -> None:
    assert route(tmp_path, text, "fe80::1%eth0").host == "fe80::1%eth0"


def test_the_hosts_file_takes_precedence(tmp_path: Path) -> None:
    found = route(tmp_path, "User bob\nPort 1\n", user="carl", port=2)
    assert (found.user, found.port) == ("carl", 2)


def test_paths_expand_tokens_variables_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", "/keys")
    text = "IdentityFile ${KEYS}/%n-%p-%r\nIdentityFile ~/%L\nIdentityFile none\n"
    assert route(tmp_path, text).paths("identityfile") == ("/keys/node1-22-ann", os.path.expanduser("~/launch"))


REJECTED = {
    "RevokedHostKeys /k": "write the keys into known_hosts: @revoked",
    "KnownHostsCommand /bin/x %H": "fab trust",
    "PKCS11Provider /x.so": "ssh-add -s",
    "ProxyUseFdpass yes": "ProxyCommand that passes",
    "PubkeyAuthentication no": "keys only",
    "PreferredAuthentications password": "publickey",
    "CanonicalizeHostname always": "HostName",
    "Match tagged x": "Match tagged is not supported",
    "Port 0": "Port 0 is not a number",
    "IdentityFile ${NO_SUCH}/x": "there is no variable NO_SUCH",
    "IdentityFile %y": "%y is not supported",
    "CertificateFile /c.pub": "KEY-cert.pub beside it",
}


@pytest.mark.parametrize("line", REJECTED)
def test_unsupported_security_options_are_rejected(tmp_path: Path, line: str) -> None:
    with pytest.raises(HostError) as caught:
        key_files(route(tmp_path, f"Host *\n{line}\nLogLevel ERROR\n"), ())
    assert REJECTED[line] in str(caught.value)


IGNORED = [
    "ControlMaster auto",
    "Ciphers aes256-ctr",
    "ForwardAgent yes",
    "PreferredAuthentications publickey,password",
]


@pytest.mark.parametrize("line", [*IGNORED, "RevokedHostKeys none", "CanonicalizeHostname no", "NoSuchOption x"])
def test_unsupported_comfort_options_are_ignored(tmp_path: Path, line: str) -> None:
    assert config.unsupported(route(tmp_path, line).options) == []


def test_unsupported_options_of_other_hosts_are_ignored(tmp_path: Path) -> None:
    assert route(tmp_path, "Host other\nPKCS11Provider /x\n").host == "node1"


def test_a_file_that_includes_itself_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(TorchfabError, match="includes itself"):
        route(tmp_path, f"Include {tmp_path}/config\n")


@pytest.mark.parametrize(("text", "expected"), [("7", 7), ("2m", 120), ("1h30m", 5400), ("none", 0), ("", 0)])
def test_times_are_parsed(text: str, expected: float) -> None:
    assert config.seconds(text) == expected


def test_keys_are_the_configured_ones_or_the_defaults(tmp_path: Path) -> None:
    assert key_files(route(tmp_path, ""), ()) == default_keys()
    assert key_files(route(tmp_path, "IdentityFile /k\n"), ("/i",)) == ("/i", "/k")
    assert key_files(route(tmp_path, "IdentityFile none\n"), ()) == ()
