"""Build the command line of rsync and parse its output. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torchfab.core.errors import HostError
from torchfab.core.lazy_dataclass import dataclass

# Files that are not code and differ between nodes: git's own, environments, and those that torchfab writes. The records
# of jobs, whose folder is a setting, are excluded by `gitignore.exclude_rule`.
EXCLUDED = (".git", "/.venv", "/.torchfab", ".torchfab-sync-*", ".torchfab-partial")
PARTIAL = ".torchfab-partial"  # holds files that `fab pull` has copied only in part
_NO_TARGET = ".torchfab-sync-none"  # excluded, and never created
_MOST_LINES = 6
# Lines that rsync and ssh print at every failure.
_NOISE = re.compile(
    r"rsync: (?:connection unexpectedly closed|\[sender\]|.*safe_read failed)|rsync error: |@@@|"
    r"Warning: Permanently added|\*\* WARNING: |It is recommended|This private key will be ignored"
)
_SSH_FIX = "rsync connects through OpenSSH: see what `ssh -o BatchMode=yes HOST true` prints"
_SSH_FIXES = (
    ("Bad configuration option", "correct that line of the ssh config: this OpenSSH does not know the option"),
    ("bad permissions", "chmod 600 that key: OpenSSH ignores a private key that others can read"),
    ("UNPROTECTED PRIVATE KEY", "chmod 600 that key: OpenSSH ignores a private key that others can read"),
    ("Host key verification failed", "compare and add the host's key: fab trust"),
)
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
_ESCAPED = re.compile(rb"\\#([0-3][0-7]{2})")


def is_excluded(name: str) -> bool:
    """Return whether a file is never copied, even if git tracks it.

    Parameters
    ----------
    name : str
        Relative to the directory.

    Returns
    -------
    bool
        True if EXCLUDED matches it.
    """
    parts = name.split("/")
    anchored = [pattern[1:] for pattern in EXCLUDED if pattern.startswith("/")]
    anywhere = [pattern for pattern in EXCLUDED if not pattern.startswith("/")]
    return parts[0] in anchored or any(fnmatchcase(part, pattern) for part in parts for pattern in anywhere)


def options(delete: bool, rules: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the rsync options for what to copy: contents, links, modes and times. Owners are not copied: they differ.

    Parameters
    ----------
    delete : bool
        Whether to remove files on the target that the source does not have.
    rules : sequence of str
        More filters, which precede the .gitignore files. Default none.

    Returns
    -------
    tuple of str
        Without source and target.
    """
    filters = (*(f"--exclude={pattern}" for pattern in EXCLUDED), *rules, "--filter=:- .gitignore")
    return ("--recursive", "--links", "--perms", "--times", *filters, *(("--delete",) if delete else ()))


def copy_argv(
    source: str,
    destination: str,
    host: str,
    shell: Sequence[str],
    delete: bool,
    rules: Sequence[str] = (),
    timeout_s: float = 60.0,
) -> tuple[str, ...]:
    """Return the command that copies the local directory `source` to the directory `destination` of a host.

    Parameters
    ----------
    source, destination : str
        Absolute paths.
    host : str
        Name or address; empty for the local machine.
    shell : sequence of str
        The ssh command, without the host.
    delete : bool
        Whether to remove files on the host that `source` does not have; excluded files are never removed.
    rules : sequence of str
        More filters, which precede the .gitignore files. Default none.
    timeout_s : float
        I/O timeout of rsync, in seconds. Default 60.

    Returns
    -------
    tuple of str
        The argv.
    """
    return (
        *("rsync", *options(delete, rules), "--stats", "--no-human-readable"),
        *_remote_options(host, shell, timeout_s),
        *("--", f"{source}/", f"{_address(host)}{destination}/"),
    )


def _remote_options(host: str, shell: Sequence[str], timeout_s: float) -> tuple[str, ...]:
    # --protect-args sends the paths over the connection: the login shell of the host would expand them.
    return ("--protect-args", f"--rsh={shell_words(shell)}", f"--timeout={math.ceil(timeout_s)}") if host else ()


def _address(host: str) -> str:
    return f"[{host}]:" if ":" in host else f"{host}:" if host else ""


def pull_argv(
    base: str,
    destination: str,
    host: str,
    shell: Sequence[str],
    timeout_s: float = 60.0,
    progress: bool = False,
) -> tuple[str, ...]:
    """Return the command that copies files from a host; it reads their names, each ended by a NUL, from stdin.

    A file appears under its name when it is complete; an interrupted copy stays in PARTIAL beside it, and the next run
    resumes it.

    Parameters
    ----------
    base : str
        The folder on the host that the names are relative to; an absolute path.
    destination : str
        The local folder.
    host : str
        Name or address; empty for the local machine.
    shell : sequence of str
        The ssh command, without the host.
    timeout_s : float
        I/O timeout of rsync, in seconds. Default 60.
    progress : bool
        Print the number of bytes copied so far, repeatedly on one line. Default False.

    Returns
    -------
    tuple of str
        The argv.
    """
    return (
        *("rsync", "--files-from=-", "--from0", "--no-implied-dirs", "--copy-links", "--perms", "--times"),
        *(f"--partial-dir={PARTIAL}", "--no-human-readable"),
        *(("--info=progress2",) if progress else ()),
        *_remote_options(host, shell, timeout_s),
        *("--", f"{_address(host)}{base.rstrip('/')}/", f"{destination.rstrip('/')}/"),
    )


def parse_progress(text: str) -> int:
    """Parse the output of `--info=progress2`.

    Parameters
    ----------
    text : str
        The end of the output.

    Returns
    -------
    int
        The number of bytes copied so far; 0 if it is not known.
    """
    found = re.findall(r"(?:^|[\r\n]) *([\d,.]+) +\d+%", text)
    return int(re.sub(r"\D", "", found[-1][:24]) or 0) if found else 0


def shell_words(argv: Sequence[str]) -> str:
    """Quote an argv as the single value of `--rsh`, which rsync splits itself.

    rsync splits at blanks and supports quotes but no backslash: inside quotes, a doubled quote is a literal quote
    (rsync(1), `-e`).

    Parameters
    ----------
    argv : sequence of str
        The ssh command.

    Returns
    -------
    str
        The quoted command.
    """
    return " ".join(word if _PLAIN.fullmatch(word) else "'" + word.replace("'", "''") + "'" for word in argv)


def list_argv(source: str, rules: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command that lists the files that would be copied, one name per line.

    Parameters
    ----------
    source : str
        Absolute path of the directory.
    rules : sequence of str
        More filters, which precede the .gitignore files. Default none.

    Returns
    -------
    tuple of str
        The argv.
    """
    # The target of the dry run need not exist: rsync then treats it as empty.
    listing = ("--dry-run", "--8-bit-output", "--out-format=%n")
    return ("rsync", *options(False, rules), *listing, "--", f"{source}/", f"{source}/{_NO_TARGET}/")


def parse_list(output: bytes) -> list[str]:
    """Parse the output of `list_argv`, and decode its escaped bytes.

    Parameters
    ----------
    output : bytes
        Output of the command.

    Returns
    -------
    list of str
        Files and links, without folders.
    """
    names = [line for line in output.split(b"\n") if line and not line.endswith(b"/")]
    decoded = [_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), name) for name in names]
    return [name.decode("utf-8", "surrogateescape") for name in decoded]


@dataclass(frozen=True)
class Stats:
    """The files that were copied because they were missing or different: their number, and total size in bytes."""

    files: int
    size_bytes: int


def parse_stats(output: str) -> Stats:
    """Parse the output of `--stats`.

    Parameters
    ----------
    output : str
        Output of rsync.

    Returns
    -------
    Stats
        Zeros if the output has no statistics.
    """
    return Stats(
        _number(r"^Number of (?:regular )?files transferred: ([\d,.]+)", output),
        _number(r"^Total transferred file size: ([\d,.]+)", output),
    )


def _number(pattern: str, output: str) -> int:
    found = re.search(pattern, output, re.MULTILINE)
    return int(re.sub(r"\D", "", found[1][:24]) or 0) if found else 0


def copy_error(code: int, stderr: str) -> HostError:
    """Return the error for a failed copy: what OpenSSH and rsync reported, and a fix.

    Parameters
    ----------
    code : int
        Exit code of rsync.
    stderr : str
        Its error output.

    Returns
    -------
    HostError
        Without a fix if none is known.
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    causes = [line for line in lines if not _NOISE.match(line)] or lines
    fix = ""
    if code == 255:  # ssh itself failed
        fix = next((fix for sign, fix in _SSH_FIXES if sign in stderr), _SSH_FIX)
    elif code == 127 or "command not found" in stderr:
        fix = "install it there, for example: sudo apt-get install -y rsync"
    elif "shell clean" in stderr:
        fix = "a start-up file (.bashrc) there prints something: make it silent for non-interactive shells"
    elif code == 12:
        fix = "the connection ended: check ssh and rsync there: ssh -o BatchMode=yes HOST rsync --version"
    elif code in (30, 35):
        fix = "check that the node is still up, then run fab sync or fab pull again; it resumes where it stopped"
    return HostError("\n".join([f"rsync ended with {code}", *_shortened(causes)]), fix)


def _shortened(lines: list[str]) -> list[str]:
    """Return the first and the last lines: OpenSSH prints its cause first and the consequences last."""
    return lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 2], "...", lines[-1]]
