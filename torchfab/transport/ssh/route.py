"""The route to a host from ssh's configuration: name, port, user, keys and jump hosts. Pure."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace

from torchfab.core.errors import HostError
from torchfab.core.flag_values import is_whole
from torchfab.core.lazy_dataclass import dataclass
from torchfab.transport.ssh.config import (
    ClientIdentity,
    Option,
    Options,
    expand,
    expand_path,
    options_for,
    seconds,
    tokens,
    unsupported,
)

_MOST_JUMPS = 8


@dataclass(frozen=True)
class Route:
    """The route to one host.

    Parameters
    ----------
    name : str
        The host, as the user gave it.
    host, port, user : str, int, str
        The address to connect to, and the user to log in as.
    options : Options
        The options in ssh's configuration for the host.
    client : ClientIdentity
        The local user and machine.
    jumps : tuple of Route
        At most one: the route to the jump host, which contains that host's own jumps.
    proxy_command : str
        The ProxyCommand, with its tokens expanded; empty for none.
    """

    name: str
    host: str
    port: int
    user: str
    options: Options
    client: ClientIdentity
    jumps: tuple[Route, ...] = ()
    proxy_command: str = ""

    def tokens(self) -> dict[str, str]:
        """Return the expansion of each token of ssh_config(5).

        Returns
        -------
        dict of str to str
            By the letter after `%`.
        """
        values = tokens(self.options, self.client)
        values |= {"h": self.host, "p": str(self.port), "r": self.user, "j": self.jumps[0].name if self.jumps else ""}
        identity = "".join(values[name] for name in "lhprj")
        return {**values, "C": hashlib.sha1(identity.encode("utf-8", "surrogateescape")).hexdigest()}

    def path(self, text: str, name: str) -> str:
        """Expand the path in the value of an option.

        Parameters
        ----------
        text : str
            The value.
        name : str
            The option, for errors.

        Returns
        -------
        str
            The path, without tokens, variables and `~`.
        """
        return expand_path(text, self.tokens(), name)

    def paths(self, name: str) -> tuple[str, ...]:
        """Return the paths of an option.

        Parameters
        ----------
        name : str
            The option, in lower case.

        Returns
        -------
        tuple of str
            Expanded; `none` is left out.
        """
        values = self.options.values(name)
        return tuple(self.path(value, name) for value in values if value.lower() != "none")

    @property
    def connect_timeout_s(self) -> float:
        """ConnectTimeout in seconds; 0 if it is not set."""
        return seconds(self.options.value("connecttimeout"))


def route_to(
    config: Sequence[Option],
    name: str,
    client: ClientIdentity,
    user: str = "",
    port: int | None = None,
    jumps: str | None = None,
    depth: int = 0,
) -> Route:
    """Determine the route to a host.

    Parameters
    ----------
    config : sequence of Option
        ssh's configuration.
    name : str
        The host, as the user gave it.
    client : ClientIdentity
        The local user and machine.
    user : str
        The user to log in as. Default: as configured.
    port : int, optional
        The port. Default: as configured.
    jumps : str, optional
        Replaces the ProxyJump of the configuration.
    depth : int
        How many jump hosts precede this call; internal to the recursion. Default 0.

    Returns
    -------
    Route
        The route, with those to its jump hosts.

    Raises
    ------
    HostError
        The configuration of the host is not valid, or has an option that is not supported.
    """
    if depth > _MOST_JUMPS:
        raise HostError(f"ProxyJump goes in a circle, or over more than {_MOST_JUMPS} hosts", "see ssh -G HOST")
    options = options_for(config, name, client, user, port)
    refuse_unsupported(options)
    values = tokens(options, client)
    route = Route(name, values["h"], _port(options), values["r"], options, client)
    if jumps is None and _precedes(options, "proxycommand", "proxyjump"):
        command = options.value("proxycommand")
        return (
            route
            if command == "none"
            else replace(route, proxy_command=expand(command, route.tokens(), "ProxyCommand"))
        )
    before, _, last = (options.value("proxyjump", "none") if jumps is None else jumps).rpartition(",")
    if last.lower() in ("none", ""):
        return route
    hop_user, hop, hop_port = parse_hop(expand(last, values, "ProxyJump"))
    if hop.lower() in (name.lower(), route.host.lower()):  # `Host *` has a ProxyJump, and this host is the jump host
        return route
    return replace(route, jumps=(route_to(config, hop, client, hop_user, hop_port, before or None, depth + 1),))


def _precedes(options: Options, name: str, other: str) -> bool:
    """Return whether an option is set before another one. Only the first of ProxyCommand and ProxyJump applies."""
    names = list(options.by_name)
    return name in names and (other not in names or names.index(name) < names.index(other))


def _port(options: Options) -> int:
    text = options.value("port", "22")
    if not _is_port(text):
        raise HostError(f"{options.location('port')}: Port {text} is not a number from 1 to 65535")
    return int(text)


def _is_port(text: str) -> bool:
    return is_whole(text) and 0 < int(text) < 65536


def refuse_unsupported(options: Options) -> None:
    """Reject options that affect authentication or host keys and that torchfab does not support.

    Parameters
    ----------
    options : Options
        The options of a host.

    Raises
    ------
    HostError
        The configuration of the host has such options.
    """
    problems = unsupported(options)
    if problems:
        raise HostError("; ".join(problem for problem, _ in problems), "; ".join(fix for _, fix in problems))


def parse_hop(text: str) -> tuple[str, str, int | None]:
    """Parse a jump host of ProxyJump.

    Parameters
    ----------
    text : str
        `user@host:port`, also as `ssh://…`; user and port are optional, an IPv6 address with a port is in brackets.

    Returns
    -------
    tuple of str, str, and int or None
        User (empty if it is not given), host and port.

    Raises
    ------
    HostError
        The text has no host, or an invalid port.
    """
    text = text.strip().removeprefix("ssh://").rstrip("/")
    user, _, address = text.rpartition("@")
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]") or (":" in host and not host.startswith("[")):
        host, port = address, ""
    host = host.strip("[]")
    if not host or (port and not _is_port(port)):
        raise HostError(f"ProxyJump {text!r} is not a host", "write it as user@host:port")
    return user, host, int(port) if port else None


def key_files(route: Route, given: Sequence[str]) -> tuple[str, ...]:
    """Return the private keys to log in with.

    A CertificateFile that is not named after its key is rejected: paramiko finds a certificate only by its name.

    Parameters
    ----------
    route : Route
        The route to the host.
    given : sequence of str
        The keys of `fab -i`.

    Returns
    -------
    tuple of str
        Those of `fab -i` and IdentityFile; ssh's default ones if neither is given.

    Raises
    ------
    HostError
        A CertificateFile is not supported.
    """
    configured = (*given, *route.paths("identityfile"))
    certificates = route.paths("certificatefile")
    for path in certificates:
        if not any(path == f"{key}-cert.pub" for key in (*configured, *default_keys())):
            raise HostError(
                f"{route.options.location('certificatefile')}: CertificateFile {path} is not supported",
                "name its key with IdentityFile, and the certificate KEY-cert.pub beside it",
            )
    is_none = any(value.lower() == "none" for value in route.options.values("identityfile"))
    return configured if configured or is_none else default_keys()


def default_keys() -> tuple[str, ...]:
    """Return the private keys that torchfab tries if none is configured, as ssh does.

    Returns
    -------
    tuple of str
        Paths in `~/.ssh`.
    """
    return tuple(os.path.expanduser(f"~/.ssh/id_{kind}") for kind in ("rsa", "ecdsa", "ed25519"))
