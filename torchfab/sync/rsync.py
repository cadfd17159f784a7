"""rsync's command line and its output, pure: what is copied, how a node is reached, what was said at the end."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torchfab.core.errors import HostError

# Not code, and on every node another: git's own files, environments, and what torchfab itself writes.
LEFT_OUT = (".git", "/.venv", "/.torchfab", "/jobs", ".torchfab-sync-*")
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
_ESCAPED = re.compile(rb"\\#([0-3][0-7]{2})")


def is_left_out(name: str) -> bool:
    """Say whether a file is never copied, whatever git says of it; `name` is relative to the directory."""
    parts = name.split("/")
    anchored = [pattern[1:] for pattern in LEFT_OUT if pattern.startswith("/")]
    anywhere = [pattern for pattern in LEFT_OUT if not pattern.startswith("/")]
    return parts[0] in anchored or any(fnmatchcase(part, pattern) for part in parts for pattern in anywhere)


def options(delete: bool, rules: Sequence[str] = ()) -> tuple[str, ...]:
    """Return what is copied, and how: contents, links, modes and times, but no owners, who differ between machines.

    Parameters
    ----------
    delete : bool
        Remove what is there and not here.
    rules : sequence of str
        More filters, which count before the .gitignore files.
    """
    filters = (*(f"--exclude={pattern}" for pattern in LEFT_OUT), *rules, "--filter=:- .gitignore")
    return ("--recursive", "--links", "--perms", "--times", *filters, *(("--delete",) if delete else ()))


def copy_argv(
    source: str,
    to: str,
    host: str,
    shell: Sequence[str],
    delete: bool,
    rules: Sequence[str] = (),
    silent_s: float = 60.0,
) -> tuple[str, ...]:
    """Return the command that makes the directory `to` of a host hold what `source` holds here.

    Parameters
    ----------
    source, to : str
        Absolute paths.
    host : str
        Name or address; empty for this machine.
    shell : sequence of str
        The command that reaches a host, without the host.
    delete : bool
        Remove what is there and not here; what is never copied is never removed.
    rules : sequence of str
        More filters, which count before the .gitignore files.
    silent_s : float
        After how long without a sign of life a node counts as lost. Default 60.
    """
    # The far rsync gets its paths over the connection, not from the login shell there, which would expand them.
    through = ("--protect-args", f"--rsh={shell_words(shell)}", f"--timeout={math.ceil(silent_s)}") if host else ()
    target = f"[{host}]:" if ":" in host else f"{host}:" if host else ""
    return (
        *("rsync", *options(delete, rules), "--stats", "--no-human-readable"),
        *through,
        *("--", f"{source}/", f"{target}{to}/"),
    )


def shell_words(argv: Sequence[str]) -> str:
    """Return an argv as the one text that rsync takes for `--rsh`, and takes apart itself.

    It knows blanks and quotes, and no backslash: inside quotes, a doubled quote stands for itself (rsync(1), `-e`).
    """
    return " ".join(word if _PLAIN.fullmatch(word) else "'" + word.replace("'", "''") + "'" for word in argv)


def list_argv(source: str, nowhere: str, rules: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command that lists what would be copied, a name a line; `nowhere` is an empty directory."""
    listing = ("--dry-run", "--8-bit-output", "--out-format=%n")
    return ("rsync", *options(False, rules), *listing, "--", f"{source}/", f"{nowhere}/")


def listed(output: bytes) -> list[str]:
    """Return the files and links that `list_argv` printed, without the folders; undo its escapes of odd bytes."""
    names = [line for line in output.split(b"\n") if line and not line.endswith(b"/")]
    plain = [_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), name) for name in names]
    return [name.decode("utf-8", "surrogateescape") for name in plain]


@dataclass(frozen=True)
class Stats:
    """What was copied because it was not there or not equal: how many files, and how large they are."""

    files: int
    size_bytes: int


def stats(output: str) -> Stats:
    """Return what `--stats` printed."""
    return Stats(
        _number(r"^Number of (?:regular )?files transferred: ([\d,.]+)", output),
        _number(r"^Total transferred file size: ([\d,.]+)", output),
    )


def _number(pattern: str, output: str) -> int:
    found = re.search(pattern, output, re.MULTILINE)
    return int(re.sub(r"\D", "", found[1][:24]) or 0) if found else 0


def problem(code: int, stderr: str) -> HostError:
    """Return why a copy failed: rsync's last words, and what to do about it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    fix = ""
    if code == 255:  # ssh's own
        fix = "rsync goes through OpenSSH: see what `ssh -o BatchMode=yes HOST true` says"
    elif code == 127 or "command not found" in stderr:
        fix = "install it there, for example: sudo apt-get install -y rsync"
    elif "shell clean" in stderr:
        fix = "a start-up file (.bashrc) there prints something: make it silent where nobody looks"
    elif code in (30, 35):
        fix = "see whether the node is still up, then: fab sync again; it goes on where it was"
    return HostError("\n".join([f"rsync ended with {code}", *lines[-3:]]), fix)
