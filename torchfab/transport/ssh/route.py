"""The way to a host, as ssh's configuration says it: name, port, user, keys, and the hosts in between. Pure."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torchfab.core.errors import HostError
from torchfab.core.flag_values import is_whole
from torchfab.transport.ssh import config as sshconfig
from torchfab.transport.ssh.config import ClientIdentity, Option, Options

_MOST_JUMPS = 8


@dataclass(frozen=True)
class Route:
    """The way to one host.

    Parameters
    ----------
    name : str
        The host, as the user names it.
    host, port, user : str, int, str
        Where ssh connects to, and as whom.
    options : Options
        All that ssh's configuration says of it.
    asker : Asker
        Who connects.
    jumps : tuple of Route
        The host that it is reached through, whose own jumps are in its route; or none.
    proxy_command : str
        The command that stands for the connection; empty for none.
    """

    name: str
    host: str
    port: int
    user: str
    options: Options
    asker: ClientIdentity
    jumps: tuple[Route, ...] = ()
    proxy_command: str = ""

    def tokens(self) -> dict[str, str]:
        """Return what the tokens of ssh_config(5) stand for."""
        values = sshconfig.tokens(self.options, self.asker)
        values |= {"h": self.host, "p": str(self.port), "r": self.user, "j": self.jumps[0].name if self.jumps else ""}
        whole = "".join(values[name] for name in "lhprj")
        return {**values, "C": hashlib.sha1(whole.encode("utf-8", "surrogateescape")).hexdigest()}

    def path(self, text: str, name: str) -> str:
        """Return the path that the value of an option means."""
        return sshconfig.expand_path(text, self.tokens(), name)

    def paths(self, name: str) -> tuple[str, ...]:
        """Return the paths that an option names; none for `none`."""
        words = self.options.words(name)
        return tuple(self.path(word, name) for word in words if word.lower() != "none")

    @property
    def connect_timeout_s(self) -> float:
        """ConnectTimeout; 0 for none."""
        return sshconfig.seconds(self.options.text("connecttimeout"))


def route_to(
    config: Sequence[Option],
    name: str,
    asker: ClientIdentity,
    user: str = "",
    port: int | None = None,
    jumps: str | None = None,
    depth: int = 0,
) -> Route:
    """Return the way to a host.

    Parameters
    ----------
    config : sequence of Option
        ssh's configuration.
    name, user, port : str, str, int
        As the user says it; `user` and `port` empty for ssh's own choice.
    asker : Asker
        Who connects.
    jumps : str, optional
        ProxyJump, where it is not the configuration that says it.

    Raises
    ------
    HostError
        The configuration has what is not supported, or what cannot be.
    """
    if depth > _MOST_JUMPS:
        raise HostError(f"ProxyJump goes in a circle, or over more than {_MOST_JUMPS} hosts", "see ssh -G HOST")
    options = sshconfig.options_for(config, name, asker, user, port)
    refuse_unsupported(options)
    values = sshconfig.tokens(options, asker)
    route = Route(name, values["h"], _port(options), values["r"], options, asker)
    if jumps is None and _comes_first(options, "proxycommand", "proxyjump"):
        command = options.text("proxycommand")
        return (
            route
            if command == "none"
            else replace(route, proxy_command=sshconfig.expand(command, route.tokens(), "ProxyCommand"))
        )
    before, _, last = (options.text("proxyjump", "none") if jumps is None else jumps).rpartition(",")
    if last.lower() in ("none", ""):
        return route
    hop_user, hop, hop_port = parse_hop(sshconfig.expand(last, values, "ProxyJump"))
    if hop.lower() in (name.lower(), route.host.lower()):  # `Host *` with a ProxyJump, and this is the jump host
        return route
    return replace(route, jumps=(route_to(config, hop, asker, hop_user, hop_port, before or None, depth + 1),))


def _comes_first(options: Options, name: str, other: str) -> bool:
    """Say whether ProxyCommand counts: of it and ProxyJump, the one that stands first does."""
    names = list(options.found)
    return name in names and (other not in names or names.index(name) < names.index(other))


def _port(options: Options) -> int:
    text = options.text("port", "22")
    if not _is_port(text):
        raise HostError(f"{options.where('port')}: Port {text} is no number from 1 to 65535")
    return int(text)


def _is_port(text: str) -> bool:
    return is_whole(text) and 0 < int(text) < 65536


def refuse_unsupported(options: Options) -> None:
    """Raise HostError where ssh's configuration has an option that changes who gets in, and that is not supported."""
    found = sshconfig.unsupported(options)
    if found:
        raise HostError("; ".join(what for what, _ in found), "; ".join(fix for _, fix in found))


def parse_hop(text: str) -> tuple[str, str, int | None]:
    """Return user, host and port of a jump host: `user@host:port`, also as `ssh://…`, IPv6 in brackets."""
    text = text.strip().removeprefix("ssh://").rstrip("/")
    user, _, where = text.rpartition("@")
    host, colon, port = where.rpartition(":")
    if not colon or where.endswith("]") or (":" in host and not host.startswith("[")):
        host, port = where, ""
    host = host.strip("[]")
    if not host or (port and not _is_port(port)):
        raise HostError(f"ProxyJump {text!r} is no host", "write it as user@host:port")
    return user, host, int(port) if port else None


def key_files(route: Route, given: Sequence[str]) -> tuple[str, ...]:
    """Return the private keys to log in with: those of `fab -i` and IdentityFile, else ssh's usual ones.

    A CertificateFile that is not named after its key is refused: paramiko finds a certificate by its name only.
    """
    named = (*given, *route.paths("identityfile"))
    certificates = route.paths("certificatefile")
    for path in certificates:
        if not any(path == f"{key}-cert.pub" for key in (*named, *usual_keys())):
            raise HostError(
                f"{route.options.where('certificatefile')}: CertificateFile {path} is not supported",
                "name its key with IdentityFile, and the certificate KEY-cert.pub beside it",
            )
    said_none = any(word.lower() == "none" for word in route.options.words("identityfile"))
    return named if named or said_none else usual_keys()


def usual_keys() -> tuple[str, ...]:
    """Return the private keys that ssh tries where none is named."""
    return tuple(os.path.expanduser(f"~/.ssh/id_{kind}") for kind in ("rsa", "ecdsa", "ed25519"))
