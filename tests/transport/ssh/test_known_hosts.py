"""known_hosts lines are found, and keys classified, as OpenSSH does."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support import fuzzed, require
from torchfab.transport.ssh import known_hosts
from torchfab.transport.ssh.known_hosts import KnownFile, Line, classify

KIND = "ssh-ed25519"


def blob(number: int) -> bytes:
    return len(KIND).to_bytes(4, "big") + KIND.encode() + (32).to_bytes(4, "big") + bytes([number]) * 32


def key(number: int) -> str:
    return f"{KIND} {base64.b64encode(blob(number)).decode()}"


def line(number: int, marker: str = "") -> Line:
    return Line("f", 1, marker, KIND, blob(number))


def found(text: str, name: str) -> list[int]:
    """Return the numbers of the lines of a host."""
    return [each.number for each in KnownFile("f", text).lines(name)]


@pytest.mark.parametrize(
    ("names", "name", "expected"),
    [
        ("a", "a", True),
        ("a,b", "b", True),
        ("A", "a", True),
        ("a", "A", True),
        ("a", "aa", False),
        ("[a]:2222", "[a]:2222", True),
        ("[a]:2222", "a", False),
        ("*", "anything", True),
        ("node?", "node1", True),
        ("node?", "node10", False),
        ("*.lab,!bad.lab", "good.lab", True),
        ("*.lab,!bad.lab", "bad.lab", False),
        ("!a", "b", False),
        ("[ab]*", "a1", False),
        ("a.b", "axb", False),
        ("10.0.0.*", "10.0.0.1", True),
    ],
)
def test_host_patterns_match_as_in_openssh(names: str, name: str, expected: bool) -> None:
    assert found(f"{names} {key(1)}", name) == ([1] if expected else [])


def test_malformed_lines_are_skipped() -> None:
    broken = [
        "",
        "   ",
        "a",
        f"a {KIND}",
        f"a {KIND} !!",
        f"a ssh-rsa {key(1).split()[1]}",
        "|1|x a",
        f"@no a {key(1)}",
    ]
    assert found("\n".join([f"# a {key(1)}", *broken, f"  a {key(1)}"]), "a") == [10]


def test_markers_are_kept() -> None:
    lines = KnownFile("f", f"@revoked a {key(1)}\n@cert-authority * {key(2)}").lines("a")
    assert [each.marker for each in lines] == ["@revoked", "@cert-authority"]


@pytest.mark.parametrize(
    ("lines", "authority", "standing"),
    [
        ([], None, "new"),
        ([line(1)], None, "known"),
        ([line(2)], None, "changed"),
        ([line(2), line(1)], None, "known"),
        ([line(1), line(1, "@revoked")], None, "revoked"),
        ([line(1), line(2, "@revoked")], None, "known"),
        ([line(1, "@cert-authority")], None, "new"),
        ([line(3, "@cert-authority")], 3, "known"),
        ([line(3, "@cert-authority"), line(3, "@revoked")], 3, "revoked"),
        ([line(3)], 3, "changed"),
        ([line(1)], 3, "known"),
    ],
)
def test_a_key_is_classified_by_the_lines_of_its_host(lines: list[Line], authority: int | None, standing: str) -> None:
    assert classify(lines, blob(1), None if authority is None else blob(authority)).status == standing


@fuzzed(
    st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=1, max_size=40),
    st.binary(min_size=20, max_size=20),
)
def test_a_hashed_line_matches_only_its_name(name: str, salt: bytes) -> None:
    text = f"{known_hosts.hashed(name.lower(), salt)} {key(1)}"
    assert found(text, name) == [1]
    assert found(text, name + "x") == []


@example("host ssh-ed25519 \x80", "host")  # not base64
@fuzzed(st.text(), st.text())
def test_any_text_is_parsed_or_rejected(text: str, name: str) -> None:
    KnownFile("f", text).lines(name)


HOSTS = ("a", "ab", "b.lab", "[a]:2222")
PATTERNS = st.lists(
    st.sampled_from(["a", "*", "?", "a*", "*b", "b.lab", "!a", "!*.lab", "[a]:2222", "[*]:*", "B.LAB"]),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40)
@given(st.lists(PATTERNS, min_size=1, max_size=4), st.sampled_from(HOSTS))
def test_ssh_keygen_finds_the_same_lines(lines: list[list[str]], name: str) -> None:
    text = "".join(f"{','.join(names)} {key(number)}\n" for number, names in enumerate(lines))
    done = subprocess.run(
        [require("ssh-keygen"), "-F", name, "-f", "/dev/stdin"], input=text, capture_output=True, text=True, check=False
    )
    theirs = [int(word) for each in done.stdout.splitlines() if "found: line" in each for word in [each.split()[-1]]]
    assert found(text, name) == theirs


def test_concurrent_writers_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "known"
    threads = [threading.Thread(target=known_hosts.append, args=(str(path), [f"host{n} {key(n)}"])) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.read_text().splitlines()) == sorted(f"host{n} {key(n)}" for n in range(20))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_append_completes_an_unterminated_last_line(tmp_path: Path) -> None:
    path = tmp_path / "known"
    path.write_text("a")
    known_hosts.append(str(path), ["b", "c"])
    assert path.read_text() == "a\nb\nc\n"


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "known"
    assert known_hosts.read([str(path)]) == ()
    path.write_text(f"a {key(1)}\n")
    before = known_hosts.lines_of(known_hosts.read([str(path)]), "a")
    path.write_text(f"a {key(1)}\na {key(2)}\n")
    os.utime(path, (1, 1))
    assert (len(before), len(known_hosts.lines_of(known_hosts.read([str(path)]), "a"))) == (1, 2)
