"""Read ssh's configuration as ssh_config(5) describes it: the options of one host, each with its file and line.

paramiko's reader does not support Include, treats unknown Match criteria as true, and expands few tokens.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from pathlib import Path

from torchfab.core.errors import HostError, UsageError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.log_context import program_of
from torchfab.transport.ssh import patterns
from torchfab.transport.ssh.config_index import Indexed

USER_FILE, SYSTEM_FILE = "~/.ssh/config", "/etc/ssh/ssh_config"
_log = logging.getLogger(__name__)
_MAX_DEPTH = 16  # as OpenSSH
_CUMULATIVE = ("identityfile", "certificatefile")  # all lines count, not only the first
_UNSPLIT = ("proxycommand", "knownhostscommand", "localcommand", "remotecommand")  # the rest of the line is one value
_CRITERIA = ("host", "originalhost", "user", "localuser", "exec")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class Block:
    """The condition of a block: the patterns of `Host`, or the criteria of `Match`.

    Parameters
    ----------
    keyword : str
        `host` or `match`.
    args : tuple of str
        The words after the keyword.
    location : str
        `file:line` of the keyword.
    """

    keyword: str
    args: tuple[str, ...]
    location: str


@dataclass(frozen=True)
class Option:
    """One line of the configuration.

    Parameters
    ----------
    name : str
        The option, in lower case.
    values : tuple of str
        The words after it.
    location : str
        `file:line`.
    blocks : tuple of Block
        All blocks that enclose the line: an Include may be inside a block.
    """

    name: str
    values: tuple[str, ...]
    location: str
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Options:
    """The options that apply to one host.

    Parameters
    ----------
    host : str
        The name of the host, as the user gave it.
    by_name : mapping of str to tuple of Option
        By name in lower case: one option each, or all occurrences of a cumulative option (IdentityFile).
    """

    host: str
    by_name: dict[str, tuple[Option, ...]] = field(default_factory=dict)

    def value(self, name: str, default: str = "") -> str:
        """Return the first value of an option.

        Parameters
        ----------
        name : str
            The option, in lower case.
        default : str
            Returned if the option is not set.

        Returns
        -------
        str
            The value.
        """
        values = self.values(name)
        return values[0] if values else default

    def values(self, name: str) -> tuple[str, ...]:
        """Return all values of an option.

        Parameters
        ----------
        name : str
            The option, in lower case.

        Returns
        -------
        tuple of str
            The values of all lines for a cumulative option, else those of the first line that applies.
        """
        return tuple(value for option in self.by_name.get(name, ()) for value in option.values)

    def is_enabled(self, name: str) -> bool:
        """Return whether an option is `yes`.

        Parameters
        ----------
        name : str
            The option, in lower case.

        Returns
        -------
        bool
            False also if it is not set.
        """
        return self.value(name).lower() in ("yes", "true")

    def location(self, name: str) -> str:
        """Return where an option is set.

        Parameters
        ----------
        name : str
            The option, in lower case; it must be set.

        Returns
        -------
        str
            `file:line`.
        """
        return self.by_name[name][0].location


# ---- reading


def read(path: str) -> Indexed:
    """Read ssh's configuration.

    Parameters
    ----------
    path : str
        The file of `fab -S`; empty for the user's file followed by the system's.

    Returns
    -------
    Indexed
        All options, in the order of the files.

    Raises
    ------
    UsageError
        A line is not an option, or files include one another too deeply.
    """
    paths = [path] if path else [os.path.expanduser(USER_FILE), SYSTEM_FILE]
    return Indexed(option for each in paths for option in _read_file(each, (), 0, os.path.dirname(SYSTEM_FILE)))


def _read_file(path: str, enclosing: tuple[Block, ...], depth: int, system_dir: str) -> Iterator[Option]:
    if depth > _MAX_DEPTH:
        raise UsageError(f"{path}: ssh's configuration includes itself, or more than {_MAX_DEPTH} files deep")
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # as OpenSSH, which ignores files that it cannot read
        return
    block: tuple[Block, ...] = ()
    for number, line in enumerate(text.split("\n"), 1):
        parsed = parse_line(line, f"{path}:{number}")
        if parsed is None:
            continue
        name, values = parsed
        if name in ("host", "match"):
            block = (Block(name, values, f"{path}:{number}"),)
        elif name == "include":
            for included in _included_files(values, path, system_dir):
                yield from _read_file(included, (*enclosing, *block), depth + 1, system_dir)
        else:
            yield Option(name, values, f"{path}:{number}", (*enclosing, *block))


def _included_files(names: Sequence[str], path: str, system_dir: str) -> list[str]:
    base = system_dir if path.startswith(system_dir + os.sep) else os.path.expanduser("~/.ssh")
    globs = [os.path.join(base, os.path.expanduser(os.path.expandvars(name))) for name in names]
    return [file for each in globs for file in sorted(glob.glob(each))]


def parse_line(line: str, location: str) -> tuple[str, tuple[str, ...]] | None:
    """Parse one line of an ssh configuration.

    Parameters
    ----------
    line : str
        The line, without its end.
    location : str
        `file:line`, for errors.

    Returns
    -------
    tuple of str and tuple of str, or None
        The option in lower case and its values; None for a comment or an empty line.

    Raises
    ------
    UsageError
        Quotes do not match, or there is no value.
    """
    line = line.strip(" \t\r\f")
    if not line or line.startswith("#"):
        return None
    match = re.fullmatch(r'"?([^\s="]+)"?\s*=?\s*(.+)', line, re.DOTALL)
    is_unsplit = match is not None and match[1].lower() in _UNSPLIT
    values = () if match is None else (match[2],) if is_unsplit else tuple(split_words(match[2], location))
    if match is None or not values:
        raise UsageError(f"{location}: {line!r} is not a line of an ssh config", "an option has a name and a value")
    return match[1].lower(), values


_WORD = re.compile(r"""\s*((?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\\.|[^\s"'\\])+|\\$)""", re.DOTALL)


def split_words(text: str, location: str) -> Iterator[str]:
    """Split the text after an option into words; quotes protect blanks, a word that begins with `#` ends the line.

    Parameters
    ----------
    text : str
        The rest of the line.
    location : str
        `file:line`, for errors.

    Yields
    ------
    str
        Each word, without its quotes.

    Raises
    ------
    UsageError
        Quotes do not match.
    """
    position = 0
    while text[position:].strip() and not text[position:].lstrip().startswith("#"):
        match = _WORD.match(text, position)
        if match is None:
            raise UsageError(f"{location}: quotes do not match in {text!r}")
        position = match.end()
        yield _unquote(match[1])


def _unquote(word: str) -> str:
    unquoted, quote, index = "", "", 0
    while index < len(word):
        char = word[index]
        if char == "\\" and word[index + 1 : index + 2] in ("\\", '"', "'", *(() if quote else (" ",))):
            index += 1
            unquoted += word[index : index + 1]
        elif quote and char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote = char
        else:
            unquoted += char
        index += 1
    return unquoted


# ---- the options of a host


@dataclass(frozen=True)
class ClientIdentity:
    """The local side of a connection: Match criteria compare with it, and tokens expand to it.

    Parameters
    ----------
    user : str
        The user on this machine.
    host : str
        This machine's name.
    run : callable
        Runs a command of `Match exec`; returns whether it succeeded.
    """

    user: str
    host: str = ""
    run: Callable[[str], bool] = lambda command: _succeeds(command)


def _succeeds(command: str) -> bool:
    shell = os.environ.get("SHELL", "/bin/sh")
    argv = [shell, "-c", command]
    _log.debug("ssh's configuration: running Match exec %s", program_of(command))
    code = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode
    _log.debug("ssh's configuration: Match exec ended with code %d", code)
    return code == 0


def options_for(
    options: Sequence[Option], host: str, client: ClientIdentity, user: str = "", port: int | None = None
) -> Options:
    """Select the options that apply to a host.

    Parameters
    ----------
    options : sequence of Option
        The whole configuration.
    host : str
        The name of the host, as the user gave it.
    client : ClientIdentity
        The local user and machine.
    user, port : str, int, optional
        From the hosts file; they take precedence over the configuration.

    Returns
    -------
    Options
        The options of this host.

    Raises
    ------
    HostError
        A Match has a criterion that is not supported.
    """
    options = options.candidates(host) if isinstance(options, Indexed) else options
    by_name: dict[str, tuple[Option, ...]] = {}
    if user:
        by_name["user"] = (Option("user", (user,), "the hosts file"),)
    if port:
        by_name["port"] = (Option("port", (str(port),), "the hosts file"),)
    has_final = any(block.keyword == "match" and "final" in block.args for each in options for block in each.blocks)
    for is_final in (False, True) if has_final else (False,):
        if is_final:  # as OpenSSH, whose second pass starts with the host name from the first one
            by_name.setdefault("hostname", (Option("hostname", (host.replace("%", "%%"),), "the first pass"),))
        matched: dict[Block, bool] = {}
        for option in options:
            if all(_applies(block, Options(host, by_name), client, is_final, matched) for block in option.blocks):
                _add(by_name, option)
    return Options(host, by_name)


def _add(by_name: dict[str, tuple[Option, ...]], option: Option) -> None:
    if option.name not in by_name:
        by_name[option.name] = (option,)
    elif option.name in _CUMULATIVE and option.values not in [each.values for each in by_name[option.name]]:
        by_name[option.name] += (option,)


def _applies(block: Block, so_far: Options, client: ClientIdentity, final: bool, matched: dict[Block, bool]) -> bool:
    # A block is evaluated once, where it begins, against the options that precede it.
    if block not in matched:
        matched[block] = (
            patterns.matches(block.args, so_far.host)
            if block.keyword == "host"
            else _evaluate_match(block, so_far, client, final)
        )
    return matched[block]


def _evaluate_match(block: Block, so_far: Options, client: ClientIdentity, final: bool) -> bool:
    args = list(block.args)
    result = True
    while args:
        word = args.pop(0)
        negated, criterion = word.startswith("!"), word.lstrip("!").lower()
        criterion, _, value = criterion.partition("=")
        if criterion == "all":
            holds = True
        elif criterion in ("final", "canonical"):
            holds = final
        elif criterion in _CRITERIA and (value or args):
            value = value or args.pop(0)
            holds = result and _evaluate_criterion(criterion, value, so_far, client)  # no `exec` after a mismatch
        else:
            raise HostError(
                f"{block.location}: Match {word} is not supported",
                f"use one of all, final, {', '.join(_CRITERIA)}; or Host",
            )
        result = result and holds is not negated
    return result


def _evaluate_criterion(criterion: str, value: str, so_far: Options, client: ClientIdentity) -> bool:
    if criterion == "exec":
        return client.run(expand(value, tokens(so_far, client), "Match exec"))
    host = _host_name(so_far)
    names = {
        "host": host,
        "originalhost": so_far.host,
        "user": so_far.value("user", client.user),
        "localuser": client.user,
    }
    return patterns.matches(value.split(","), names[criterion])


# ---- values


def tokens(options: Options, client: ClientIdentity) -> dict[str, str]:
    """Return the expansion of each token of ssh_config(5), except for those that depend on the connection.

    Parameters
    ----------
    options : Options
        The options of the host that are known so far.
    client : ClientIdentity
        The local user and machine.

    Returns
    -------
    dict of str to str
        By the letter after `%`.
    """
    host = _host_name(options)
    return {
        "d": os.path.expanduser("~"),
        "h": host,
        "i": str(os.getuid()),
        "k": options.value("hostkeyalias", options.host),
        "L": client.host.partition(".")[0],
        "l": client.host,
        "n": options.host,
        "p": options.value("port", "22"),
        "r": options.value("user", client.user),
        "u": client.user,
    }


def _host_name(options: Options) -> str:
    """Return HostName with `%h` expanded; without HostName the host unchanged: `fe80::1%eth0` contains no token."""
    host_name = options.value("hostname")
    return expand(host_name, {"h": options.host}, "HostName") if host_name else options.host


def expand(text: str, values: dict[str, str], option: str) -> str:
    """Expand the tokens (`%x`) in a value.

    Parameters
    ----------
    text : str
        The value of an option.
    values : dict of str to str
        The expansion of each token, by its letter.
    option : str
        The option, for errors.

    Returns
    -------
    str
        The value without tokens.

    Raises
    ------
    HostError
        A token is not in `values`.
    """

    def expansion(match: re.Match[str]) -> str:
        token = match[1]
        if token != "%" and token not in values:
            raise HostError(f"%{token} is not supported in {option} {text}", "write its value instead")
        return "%" if token == "%" else values[token]

    return re.sub(r"%(.?)", expansion, text, flags=re.DOTALL)


def expand_path(text: str, values: dict[str, str], option: str) -> str:
    """Expand the tokens, `~` and `${NAME}` in a path.

    Parameters
    ----------
    text : str
        The value of an option.
    values : dict of str to str
        The expansion of each token, by its letter.
    option : str
        The option, for errors.

    Returns
    -------
    str
        The path.

    Raises
    ------
    HostError
        A token is not in `values`, or a variable is not set.
    """

    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise HostError(f"{option} {text}: there is no variable {match[1]}", "set it, or write the path")
        return os.environ[match[1]]

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", variable, expand(text, values, option)))


def seconds(text: str) -> float:
    """Parse a time of ssh's configuration.

    Parameters
    ----------
    text : str
        A time like `90`, `2m` or `1h30m`; `none` or empty for no time.

    Returns
    -------
    float
        Seconds; 0 for no time.
    """
    parts = re.findall(r"([0-9]{1,9})([smhdw]?)", text.lower())
    return float(sum(int(number) * _SECONDS[unit] for number, unit in parts))


# ---- unsupported options


_NO_SUPPORT: dict[str, tuple[tuple[str, ...], str]] = {
    "canonicalizehostname": (("no", "none", "false"), "give the whole name with HostName"),
    "casignaturealgorithms": ((), "omit it for these hosts: SHA-1 is rejected anyway"),
    "knownhostscommand": (("none",), "add its output to known_hosts, or run fab trust"),
    "pkcs11provider": (("none",), "load its keys into an agent: ssh-add -s PROVIDER"),
    "preferredauthentications": ((), "torchfab logs in with keys: include publickey in it"),
    "proxyusefdpass": (("no", "false"), "use a ProxyCommand that passes the data on (ssh -W, nc)"),
    "pubkeyauthentication": (("yes", "true", "unbound", "host-bound"), "torchfab logs in with keys only"),
    "revokedhostkeys": (("none",), "write the keys into known_hosts: @revoked * KEY"),
    "securitykeyprovider": (("internal", "none"), "load its keys into an agent: ssh-add"),
}


def unsupported(options: Options) -> list[tuple[str, str]]:
    """Return the options that affect authentication or host keys and that torchfab does not support.

    Options that affect only speed or convenience (ControlMaster, Compression, Ciphers, forwarding) are ignored.

    Parameters
    ----------
    options : Options
        The options of a host.

    Returns
    -------
    list of tuple of str and str
        For each option: the problem, and its fix.
    """
    problems = []
    for name, (harmless, fix) in _NO_SUPPORT.items():
        if name in options.by_name and not _is_harmless(name, options.value(name).lower(), harmless):
            option = options.by_name[name][0]
            problems.append((f"{option.location}: {name} {' '.join(option.values)} is not supported", fix))
    return problems


def _is_harmless(name: str, value: str, harmless: Sequence[str]) -> bool:
    return value in harmless or (name == "preferredauthentications" and "publickey" in value.split(","))
