"""ssh's configuration, read as ssh_config(5) says: what holds for one host, and where each option stands.

paramiko's reader knows no Include, takes unknown Match criteria for true, and expands few tokens.
"""

from __future__ import annotations

import glob
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from torchfab.core.errors import HostError, UsageError
from torchfab.transport.ssh.config_index import Indexed

USER_FILE, SYSTEM_FILE = "~/.ssh/config", "/etc/ssh/ssh_config"
_DEEPEST = 16  # as OpenSSH
_MANY = ("identityfile", "certificatefile")  # every one that is given counts, not only the first
_RAW = ("proxycommand", "knownhostscommand", "localcommand", "remotecommand")  # the rest of the line is one value
_CRITERIA = ("host", "originalhost", "user", "localuser", "exec")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class Block:
    """What must be true of a host for the options of a block: patterns of `Host`, or criteria of `Match`."""

    keyword: str
    words: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class Option:
    """One line: an option, its words, where it stands, and all blocks around it (an Include may stand in one)."""

    name: str
    words: tuple[str, ...]
    where: str
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Options:
    """What holds for one host.

    Parameters
    ----------
    host : str
        As it was asked for.
    found : mapping of str to tuple of Option
        By name in lower case; one each, but for options of which all count.
    """

    host: str
    found: dict[str, tuple[Option, ...]] = field(default_factory=dict)

    def text(self, name: str, default: str = "") -> str:
        """Return the first word of an option."""
        words = self.words(name)
        return words[0] if words else default

    def words(self, name: str) -> tuple[str, ...]:
        """Return the words of an option; of all its lines, where all count."""
        return tuple(word for option in self.found.get(name, ()) for word in option.words)

    def is_on(self, name: str) -> bool:
        """Say whether an option is `yes`."""
        return self.text(name).lower() in ("yes", "true")

    def where(self, name: str) -> str:
        """Return `file:line` of an option."""
        return self.found[name][0].where


# ---- reading


def read(path: str) -> Indexed:
    """Return the options of the file of `fab -S`, or of the user's file and then the system's.

    Raises
    ------
    UsageError
        A line is no option, or files include one another too deeply.
    """
    paths = [path] if path else [os.path.expanduser(USER_FILE), SYSTEM_FILE]
    return Indexed(option for each in paths for option in _read_file(each, (), 0, os.path.dirname(SYSTEM_FILE)))


def _read_file(path: str, ctx: tuple[Block, ...], depth: int, system: str) -> Iterator[Option]:
    if depth > _DEEPEST:
        raise UsageError(f"{path}: ssh's configuration includes itself, or more than {_DEEPEST} files deep")
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # as OpenSSH: what is not there says nothing
        return
    block: tuple[Block, ...] = ()
    for number, line in enumerate(text.split("\n"), 1):
        parsed = parse_line(line, f"{path}:{number}")
        if parsed is None:
            continue
        name, words = parsed
        if name in ("host", "match"):
            block = (Block(name, words, f"{path}:{number}"),)
        elif name == "include":
            for found in _included(words, path, system):
                yield from _read_file(found, (*ctx, *block), depth + 1, system)
        else:
            yield Option(name, words, f"{path}:{number}", (*ctx, *block))


def _included(words: Sequence[str], path: str, system: str) -> list[str]:
    base = system if path.startswith(system + os.sep) else os.path.expanduser("~/.ssh")
    patterns = [os.path.join(base, os.path.expanduser(os.path.expandvars(word))) for word in words]
    return [found for pattern in patterns for found in sorted(glob.glob(pattern))]


def parse_line(line: str, where: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the option of a line, in lower case, and its words; None for a comment or an empty line.

    Raises
    ------
    UsageError
        Quotes do not match, or there is no value.
    """
    line = line.strip(" \t\r\f")
    if not line or line.startswith("#"):
        return None
    match = re.fullmatch(r'"?([^\s="]+)"?\s*=?\s*(.+)', line, re.DOTALL)
    raw = match is not None and match[1].lower() in _RAW
    words = () if match is None else (match[2],) if raw else tuple(split_words(match[2], where))
    if match is None or not words:
        raise UsageError(f"{where}: {line!r} is no line of an ssh config", "an option has a name and a value")
    return match[1].lower(), words


_WORD = re.compile(r"""\s*((?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\\.|[^\s"'\\])+|\\$)""", re.DOTALL)


def split_words(text: str, where: str) -> Iterator[str]:
    """Yield the words of a value: quotes keep blanks together, `#` at the beginning of one ends the line."""
    position = 0
    while text[position:].strip() and not text[position:].lstrip().startswith("#"):
        match = _WORD.match(text, position)
        if match is None:
            raise UsageError(f"{where}: quotes do not match in {text!r}")
        position = match.end()
        yield _unquoted(match[1])


def _unquoted(word: str) -> str:
    made, quote, index = "", "", 0
    while index < len(word):
        sign = word[index]
        if sign == "\\" and word[index + 1 : index + 2] in ("\\", '"', "'", *(() if quote else (" ",))):
            index += 1
            made += word[index : index + 1]
        elif quote and sign == quote:
            quote = ""
        elif not quote and sign in "\"'":
            quote = sign
        else:
            made += sign
        index += 1
    return made


# ---- what holds for a host


@dataclass(frozen=True)
class ClientIdentity:
    """Who asks, from where: what Match compares with, and tokens stand for.

    Parameters
    ----------
    user : str
        The user on this machine.
    host : str
        This machine's name.
    run : callable
        Runs a command of `Match exec`; says whether it succeeded.
    """

    user: str
    host: str = ""
    run: Callable[[str], bool] = lambda command: _succeeds(command)


def _succeeds(command: str) -> bool:
    shell = os.environ.get("SHELL", "/bin/sh")
    argv = [shell, "-c", command]
    return subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode == 0


def options_for(
    options: Sequence[Option], host: str, asker: ClientIdentity, user: str = "", port: int | None = None
) -> Options:
    """Return what holds for a host.

    Parameters
    ----------
    options : sequence of Option
        All that were read.
    host : str
        As the user names it.
    user, port : str, int, optional
        What the user says of it beside that, which comes first.

    Raises
    ------
    HostError
        A Match has a criterion that is not supported.
    """
    options = options.about(host) if isinstance(options, Indexed) else options
    found: dict[str, tuple[Option, ...]] = {}
    if user:
        found["user"] = (Option("user", (user,), "the hosts file"),)
    if port:
        found["port"] = (Option("port", (str(port),), "the hosts file"),)
    final = any(block.keyword == "match" and "final" in block.words for each in options for block in each.blocks)
    for is_final in (False, True) if final else (False,):
        if is_final:  # as OpenSSH, whose second pass begins with the name that the first one gave
            found.setdefault("hostname", (Option("hostname", (host.replace("%", "%%"),), "the first pass"),))
        matched: dict[Block, bool] = {}
        for option in options:
            if all(_holds(block, Options(host, found), asker, is_final, matched) for block in option.blocks):
                _take(found, option)
    return Options(host, found)


def _take(found: dict[str, tuple[Option, ...]], option: Option) -> None:
    if option.name not in found:
        found[option.name] = (option,)
    elif option.name in _MANY and option.words not in [each.words for each in found[option.name]]:
        found[option.name] += (option,)


def _holds(block: Block, so_far: Options, asker: ClientIdentity, final: bool, matched: dict[Block, bool]) -> bool:
    # A block is judged where it begins, by what was found before it.
    if block not in matched:
        matched[block] = (
            _names(block.words, so_far.host) if block.keyword == "host" else _matches(block, so_far, asker, final)
        )
    return matched[block]


def _matches(block: Block, so_far: Options, asker: ClientIdentity, final: bool) -> bool:
    words = list(block.words)
    result = True
    while words:
        word = words.pop(0)
        negated, criterion = word.startswith("!"), word.lstrip("!").lower()
        criterion, _, value = criterion.partition("=")
        if criterion == "all":
            holds = True
        elif criterion in ("final", "canonical"):
            holds = final
        elif criterion in _CRITERIA and (value or words):
            value = value or words.pop(0)
            holds = result and _meets(criterion, value, so_far, asker)  # what cannot match any more runs nothing
        else:
            raise HostError(
                f"{block.where}: Match {word} is not supported",
                f"use one of all, final, {', '.join(_CRITERIA)}; or Host",
            )
        result = result and holds is not negated
    return result


def _meets(criterion: str, value: str, so_far: Options, asker: ClientIdentity) -> bool:
    if criterion == "exec":
        return asker.run(expand(value, tokens(so_far, asker), "Match exec"))
    host = _host_name(so_far)
    names = {
        "host": host,
        "originalhost": so_far.host,
        "user": so_far.text("user", asker.user),
        "localuser": asker.user,
    }
    return _names(value.split(","), names[criterion])


def _names(patterns: Sequence[str], name: str) -> bool:
    if any(_pattern(each[1:]).fullmatch(name) for each in patterns if each.startswith("!")):
        return False
    return any(_pattern(each).fullmatch(name) for each in patterns if not each.startswith("!"))


@cache
def _pattern(text: str) -> re.Pattern[str]:
    signs = {"*": ".*", "?": "."}
    return re.compile("".join(signs.get(sign) or re.escape(sign) for sign in text), re.DOTALL)


# ---- values


def tokens(options: Options, asker: ClientIdentity) -> dict[str, str]:
    """Return what the tokens of ssh_config(5) stand for, but for those that only a connection knows."""
    host = _host_name(options)
    return {
        "d": os.path.expanduser("~"),
        "h": host,
        "i": str(os.getuid()),
        "k": options.text("hostkeyalias", options.host),
        "L": asker.host.partition(".")[0],
        "l": asker.host,
        "n": options.host,
        "p": options.text("port", "22"),
        "r": options.text("user", asker.user),
        "u": asker.user,
    }


def _host_name(options: Options) -> str:
    """Return HostName, in which `%h` is the host; without one the host as it is: `fe80::1%eth0` has no token in it."""
    named = options.text("hostname")
    return expand(named, {"h": options.host}, "HostName") if named else options.host


def expand(text: str, values: dict[str, str], what: str) -> str:
    """Replace `%x` by what it stands for.

    Raises
    ------
    HostError
        A token stands for nothing here.
    """

    def stands_for(match: re.Match[str]) -> str:
        token = match[1]
        if token != "%" and token not in values:
            raise HostError(f"%{token} is not supported in {what} {text}", "write what it stands for")
        return "%" if token == "%" else values[token]

    return re.sub(r"%(.?)", stands_for, text, flags=re.DOTALL)


def expand_path(text: str, values: dict[str, str], what: str) -> str:
    """The same for a path, in which `~` and `${NAME}` stand for something too."""

    def value_of(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise HostError(f"{what} {text}: there is no variable {match[1]}", "set it, or write the path")
        return os.environ[match[1]]

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", value_of, expand(text, values, what)))


def seconds(text: str) -> float:
    """Return the seconds of a time like `90`, `2m` or `1h30m`; 0 for none."""
    parts = re.findall(r"([0-9]{1,9})([smhdw]?)", text.lower())
    return float(sum(int(number) * _SECONDS[unit] for number, unit in parts))


# ---- what is not supported


_NO_SUPPORT: dict[str, tuple[tuple[str, ...], str]] = {
    "canonicalizehostname": (("no", "none", "false"), "give the whole name with HostName"),
    "casignaturealgorithms": ((), "leave it out for these hosts: SHA-1 is refused anyway"),
    "knownhostscommand": (("none",), "write what it prints into known_hosts; or fab trust"),
    "pkcs11provider": (("none",), "load its keys into an agent: ssh-add -s PROVIDER"),
    "preferredauthentications": ((), "torchfab logs in with keys: have publickey in it"),
    "proxyusefdpass": (("no", "false"), "use a ProxyCommand that passes the data on (ssh -W, nc)"),
    "pubkeyauthentication": (("yes", "true", "unbound", "host-bound"), "torchfab logs in with keys only"),
    "revokedhostkeys": (("none",), "write the keys into known_hosts: @revoked * KEY"),
    "securitykeyprovider": (("internal", "none"), "load its keys into an agent: ssh-add"),
}


def unsupported(options: Options) -> list[tuple[str, str]]:
    """Return the options that change who gets in or what is trusted and that we cannot follow, each with its fix.

    What only changes speed or comfort (ControlMaster, Compression, Ciphers, forwarding) is passed over.
    """
    found = []
    for name, (harmless, fix) in _NO_SUPPORT.items():
        if name in options.found and not _is_harmless(name, options.text(name).lower(), harmless):
            option = options.found[name][0]
            found.append((f"{option.where}: {name} {' '.join(option.words)} is not supported", fix))
    return found


def _is_harmless(name: str, value: str, harmless: Sequence[str]) -> bool:
    return value in harmless or (name == "preferredauthentications" and "publickey" in value.split(","))
