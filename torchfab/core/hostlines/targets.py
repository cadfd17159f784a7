"""The first word of a line: `[user@]host[:port]`, ranges, braces, lists with commas and groups of ClusterShell."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace

from torchfab.core.flag_values import is_whole
from torchfab.core.hostlines import braces, hints, node_groups
from torchfab.core.hostlines.words import EXPECTED, Line
from torchfab.core.lazy_dataclass import dataclass

MAX_HOSTS = 10_000
HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\$?")
IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9._-]+)?")
NUMBER = re.compile(r"[0-9]{1,9}")  # int() rejects strings of more than 4300 digits
_PATTERN = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]|\[[0-9,/-]+\])*")
_BRACKETED = re.compile(r"\[([^\]]*:[^\]]*)\](?::(.*))?")
_DOTTED = re.compile(r"[0-9]+(?:[.-][0-9]+)*\.[0-9]+(?:[.-][0-9]+)*")  # digits with dots: an address, not a name
_PER_NODE = re.compile(r"(ppn|np|ncpus|procs|mpiprocs|ngpus|gpus|tasks)=(\d{1,4}).*")
_RANGE_FIX = "write ranges as node[01-16] or node[1,3,7-9]"


@dataclass(frozen=True)
class Target:
    """The host, user and port for SSH; the user is empty and the port None if not given."""

    host: str
    user: str = ""
    port: int | None = None


def expand(line: Line, word: str) -> list[Target]:
    """Return the hosts that a word names.

    Parameters
    ----------
    line : Line
        The line, for messages.
    word : str
        The word.

    Returns
    -------
    list of Target
        In the order of the word.

    Raises
    ------
    InventoryError
        The word is not valid, or names more than `MAX_HOSTS` hosts.
    """
    parts = [part for part in split_list(word) if part]
    if not parts:
        raise line.error(f"{word!r} is not a host name")
    if len(parts) > 1 and (number := next((part for part in parts if part.isdigit()), None)):
        raise line.error(f"{number!r} in {word!r} is not a host name", "in a list of hosts, write slots=N after it")
    found = [target for part in parts for each in _braces(line, part) for target in _expand_part(line, each)]
    return found if len(found) <= MAX_HOSTS else _too_many(line, word)


def split_list(word: str) -> list[str]:
    """Split a list at its commas; a comma inside brackets or braces belongs to a range.

    Parameters
    ----------
    word : str
        The first word of a line.

    Returns
    -------
    list of str
    """
    return re.split(r",(?![^\[]*\])(?![^{]*\})", word)


def _too_many(line: Line, word: str) -> list[Target]:
    raise line.error(f"{word} names more than {MAX_HOSTS} hosts")


def _braces(line: Line, part: str) -> list[str]:
    found = braces.expand(part, MAX_HOSTS)
    if found is None:
        raise line.error(f"the range {part} has more than {MAX_HOSTS} hosts")
    return found


def _expand_part(line: Line, part: str) -> list[Target]:
    if part.startswith("@"):
        return [Target(host) for host in _group(line, part)]
    target = split_target(line, part)
    return [replace(target, host=host) for host in _expand_ranges(line, target.host)]


def split_target(line: Line, text: str) -> Target:
    """Split `user@host:port`.

    Parameters
    ----------
    line : Line
        The line, for messages.
    text : str
        The host may have ranges, and a trailing dot. IPv6 addresses are in brackets.

    Returns
    -------
    Target

    Raises
    ------
    InventoryError
        The user, the host or the port is not valid.
    """
    user, at, rest = text.removeprefix("ssh://").rpartition("@")
    if "://" in text.removeprefix("ssh://"):
        raise line.error(f"{text!r} is not a host name", hints.fix_for(text) or EXPECTED)
    if at:
        check_user(line, user)
    bracketed = _BRACKETED.fullmatch(rest)
    if bracketed:
        if not IPV6.fullmatch(bracketed[1]):
            raise line.error(f"{bracketed[1]!r} is not an IPv6 address")
        return Target(_normal_ipv6(bracketed[1]), user, parse_port(line, bracketed[2]))
    if rest.count(":") > 1:
        raise _colons(line, rest)
    host, colon, port = rest.partition(":")
    host = host.removesuffix(".") if len(host) > 1 else host
    if not _PATTERN.fullmatch(host) or not ("[" in host or HOST.fullmatch(host)):
        raise line.error(f"{host!r} is not a host name", hints.fix_for(rest) or EXPECTED)
    if "[" not in host and not is_dns_length(host):
        raise line.error(
            f"{host[:40]!r}… is not a host name" if len(host) > 40 else f"{host!r} is not a host name",
            "between its dots, a name has 1 to 63 characters, and at most 253 in all",
        )
    if _DOTTED.fullmatch(host) and not _is_ipv4(host):
        first, _, last = host.partition("-")
        stem, _, low = first.rpartition(".")
        is_range = is_whole(last) and _is_ipv4(first)
        raise line.error(f"{host!r} is not an IPv4 address", *((f"write {stem}.[{low}-{last}]",) if is_range else ()))
    return Target(host, user, parse_port(line, port if colon else None))


def is_dns_length(host: str) -> bool:
    """Return whether the parts of a host name, and the whole, have lengths that DNS allows.

    Parameters
    ----------
    host : str
        The host name.

    Returns
    -------
    bool
    """
    return len(host) <= 253 and all(1 <= len(part) <= 63 for part in host.split("."))


def _is_ipv4(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 4
    except ValueError:
        return False


def _normal_ipv6(text: str) -> str:
    """Return an IPv6 address in its shortest form, so that one address has one name."""
    address, percent, zone = text.partition("%")
    try:
        return str(ipaddress.ip_address(address)) + percent + zone
    except ValueError:
        return text


def _colons(line: Line, rest: str) -> Exception:
    host, count, *_ = rest.split(":")
    if HOST.fullmatch(host) and is_whole(count) and not _is_ipv6(rest):
        return line.error(
            f"{rest!r} has two colons", f"for MVAPICH's host:processes:device, write {host} slots={count}"
        )
    if not IPV6.fullmatch(rest):
        return line.error(f"{rest!r} is not a host name", hints.fix_for(rest) or EXPECTED)
    return line.error(f"{rest!r} looks like an IPv6 address without brackets", f"write [{rest}]")


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def check_user(line: Line, user: str) -> str:
    """Check that a login name is valid on command lines.

    Parameters
    ----------
    line : Line
        The line, for the message.
    user : str
        The login name.

    Returns
    -------
    str
        The same name.

    Raises
    ------
    InventoryError
        The name is not valid.
    """
    if not USER.fullmatch(user):
        fix = "configure such a name in ssh's configuration: Host NAME, then User NAME" if user else None
        raise line.error(f"{user!r} is not a user name", *((fix,) if fix and not user.startswith("-") else ()))
    return user


def parse_port(line: Line, text: str | None) -> int | None:
    """Parse a port.

    Parameters
    ----------
    line : Line
        The line, for the message.
    text : str or None
        The port as text; None if none is given.

    Returns
    -------
    int or None
        None if none is given.

    Raises
    ------
    InventoryError
        The text is not a port.
    """
    if text is None:
        return None
    if text.startswith(("slots=", "gpus=")):
        raise line.error(f"{text!r} is not a port", f"write a space instead of the colon: HOST {text}")
    if counted := _PER_NODE.fullmatch(text):
        fix = f"write them with our key: {line.words[0].partition(':')[0]} slots={counted[2]}"
        raise line.error(f"{text!r} is not a port, but PBS's notation of processes per node", fix)
    if not text:
        raise line.error("'' is not a port", "leave the colon out, or write the port: node1:2222")
    if not (NUMBER.fullmatch(text) and 1 <= int(text) <= 65535):
        raise line.error(f"{text!r} is not a port", "a port is a number from 1 to 65535")
    return int(text)


def _group(line: Line, pattern: str) -> list[str]:
    hosts = node_groups.resolve(line, pattern)
    wrong = next((host for host in hosts if not HOST.fullmatch(host)), None)
    if wrong is not None:
        raise line.error(f"{pattern} contains {wrong!r}, which is not a host name", "correct ClusterShell's groups")
    return hosts


def _expand_ranges(line: Line, host: str) -> list[str]:
    if "[" not in host or ":" in host:
        return [host]
    from ClusterShell.NodeSet import NodeSet, NodeSetException  # takes 30 ms, and only ranges need it

    if max_host_count(host) > MAX_HOSTS:
        raise line.error(f"the range {host} has more than {MAX_HOSTS} hosts")
    try:
        return list(NodeSet(host))
    except (NodeSetException, ValueError) as error:
        reason = (
            str(error).partition(": ")[2].replace('"', "").replace(" :", ":") or error
        )  # it begins with "bad range"
        raise line.error(f"bad range {host!r}: {reason}", _RANGE_FIX) from None


def max_host_count(pattern: str) -> int:
    """Return an upper bound for the number of hosts of a pattern with ranges; steps are ignored.

    Parameters
    ----------
    pattern : str
        Host names with ranges in brackets.

    Returns
    -------
    int
    """
    product = 1
    for ranges in re.findall(r"\[([^\]]*)\]", pattern):
        ends = [part.partition("/")[0].partition("-") for part in ranges.split(",")]
        if any(len(low) > 9 or len(high) > 9 for low, _, high in ends):
            return MAX_HOSTS + 1
        product *= sum(
            max(1, int(high) - int(low) + 1) if is_whole(low) and is_whole(high) else 1 for low, _, high in ends
        )
    return product
