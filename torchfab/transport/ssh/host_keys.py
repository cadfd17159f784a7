"""Check host keys as OpenSSH does: an unknown key is rejected. Fabric itself would accept any key.

`known_hosts` reads the files; this module tells paramiko which key types to request, and accepts or rejects the key
that a server presents.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import field
from functools import partial

import paramiko

from torchfab.core.errors import HostError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.transport.ssh import host_certificates, known_hosts
from torchfab.transport.ssh.known_hosts import KnownFile, Line, Verdict
from torchfab.transport.ssh.paramiko_transport import Transport
from torchfab.transport.ssh.route import Route

USER_FILES = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
SYSTEM_FILES = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_STRICT = {
    "yes": "yes",
    "true": "yes",
    "ask": "yes",
    "no": "no",
    "off": "no",
    "false": "no",
    "accept-new": "accept-new",
}
_CERTIFICATE = "-cert-v01@openssh.com"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """The host key settings and the known keys of one host.

    Parameters
    ----------
    host, port : str, int
        The address to connect to.
    alias : str
        HostKeyAlias: the name under which known_hosts has its key; empty for the host's own name.
    strict : str
        StrictHostKeyChecking: `yes` (also for `ask`, because no user may be there to answer), `accept-new` or `no`.
    user_files : tuple of str
        The user's known_hosts files; new keys are written to the first one. Empty for `UserKnownHostsFile none`.
    hashes : bool
        HashKnownHosts: whether names are written hashed.
    files : tuple of KnownFile
        The known_hosts files that exist.
    algorithms : str
        HostKeyAlgorithms: the algorithms to request; empty for all.
    direct : bool
        Whether the host is reached without a jump host or a ProxyCommand.
    """

    host: str
    port: int = 22
    alias: str = ""
    strict: str = "yes"
    user_files: tuple[str, ...] = ()
    hashes: bool = False
    files: tuple[KnownFile, ...] = field(default=(), repr=False)
    algorithms: str = ""
    direct: bool = True

    @property
    def name(self) -> str:
        """The name of the host in known_hosts: its alias, `host` or `[host]:port`."""
        host = self.host.lower()
        return self.alias or (host if self.port == 22 else f"[{host}]:{self.port}")

    @property
    def first_file(self) -> str:
        """The file to which new keys are added."""
        return self.user_files[0] if self.user_files else "~/.ssh/known_hosts"

    def lines(self) -> tuple[Line, ...]:
        """Return the known_hosts lines of the host.

        Returns
        -------
        tuple of Line
            In the order of the files.
        """
        return known_hosts.lines_of(self.files, self.name)

    def lines_without_port(self) -> tuple[Line, ...]:
        """Return the known_hosts lines of the host without its port: OpenSSH falls back to them.

        Returns
        -------
        tuple of Line
            None with an alias or at port 22.
        """
        return () if self.alias or self.port == 22 else known_hosts.lines_of(self.files, self.host)

    def line_for(self, key: paramiko.PKey) -> str:
        """Return the known_hosts line to add for a key.

        Parameters
        ----------
        key : paramiko.PKey
            The key of the host.

        Returns
        -------
        str
            Without a line end.
        """
        name = known_hosts.hashed(self.name, os.urandom(20)) if self.hashes else self.name
        return f"{name} {key.get_name()} {key.get_base64()}"


def load_rules(route: Route) -> Rules:
    """Read the host key settings and the known_hosts files for a host.

    Parameters
    ----------
    route : Route
        The route to the host.

    Returns
    -------
    Rules
        The rules for it.

    Raises
    ------
    HostError
        StrictHostKeyChecking has a value that OpenSSH does not know.
    """
    options = route.options
    strict = options.value("stricthostkeychecking", "ask").lower()
    if strict not in _STRICT:
        location = options.location("stricthostkeychecking")
        raise HostError(
            f"{location}: StrictHostKeyChecking is {strict!r}", "one of yes, ask, accept-new, no", route.host
        )
    user_files = _paths(route, "userknownhostsfile", USER_FILES)
    system_files = _paths(route, "globalknownhostsfile", SYSTEM_FILES)
    return Rules(
        route.host,
        route.port,
        alias=options.value("hostkeyalias").lower(),
        strict=_STRICT[strict],
        user_files=user_files,
        hashes=options.is_enabled("hashknownhosts"),
        files=known_hosts.read((*user_files, *system_files)),
        algorithms=options.value("hostkeyalgorithms"),
        direct=not (route.jumps or route.proxy_command),
    )


def _paths(route: Route, name: str, default: Sequence[str]) -> tuple[str, ...]:
    files = route.options.values(name) or default
    is_none = len(files) == 1 and files[0].lower() in ("none", os.devnull)
    return () if is_none else tuple(route.path(file, name) for file in files)


# ---- fingerprints and classification


def fingerprint(key: paramiko.PKey) -> str:
    """Return the fingerprint of a key.

    Parameters
    ----------
    key : paramiko.PKey
        The key.

    Returns
    -------
    str
        The key's type and `SHA256:...`, as `ssh-keygen -l` prints it.
    """
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


def long_fingerprint(key: paramiko.PKey, name: str) -> str:
    """Return the whole line that `ssh-keygen -l` prints for a key.

    Parameters
    ----------
    key : paramiko.PKey
        The key.
    name : str
        The host, printed as the comment.

    Returns
    -------
    str
        Bits, fingerprint, name and type.
    """
    kind = key.get_name().removeprefix("ssh-").partition("-")[0].upper()
    return f"{key.get_bits()} {fingerprint(key).split()[1]} {name} ({kind})"


def classify(rules: Rules, key: paramiko.PKey) -> Verdict:
    """Compare the key that a host presents with the known keys.

    Parameters
    ----------
    rules : Rules
        The rules for the host.
    key : paramiko.PKey
        The key, possibly with a certificate.

    Returns
    -------
    Verdict
        Known, new, changed or revoked.

    Raises
    ------
    HostError
        The key has a certificate of an authority that is trusted for this host, but the certificate is not valid.
    """
    blob = key.asbytes()
    certificate = _certificate(key)
    authority = certificate.authority if certificate else None
    verdict = known_hosts.classify(rules.lines(), blob, authority)
    if verdict.status == "new":
        without_port = known_hosts.classify(rules.lines_without_port(), blob, authority)
        verdict = without_port if without_port.status in ("known", "revoked") else verdict
    if certificate and verdict.line and verdict.line.marker == known_hosts.AUTHORITY and verdict.status == "known":
        objection = host_certificates.rejection_reason(certificate, rules.alias or rules.host, time.time())
        if objection:
            raise HostError(
                f"its host certificate {certificate.key_id!r} is refused: {objection}",
                f"have its keys signed anew (ssh-keygen -s CA -h -n {rules.alias or rules.host} KEY.pub); "
                f"the authority is that of {verdict.line.location}",
                rules.host,
            )
    return verdict


def _certificate(key: paramiko.PKey) -> host_certificates.Certificate | None:
    public: paramiko.pkey.PublicBlob | None = key.public_blob
    if public is None or not public.key_type.endswith(_CERTIFICATE):
        return None
    try:
        return host_certificates.read(public.key_blob)
    except ValueError as error:
        raise HostError(f"its host certificate is {error}", "see its HostCertificate in sshd_config") from None


# ---- accept or reject


class HostKeyPolicy(paramiko.MissingHostKeyPolicy):
    """Reject a server whose host key is unknown, changed or revoked.

    paramiko's own store of host keys stays empty, so that paramiko calls this policy for every key.

    Parameters
    ----------
    rules : Rules
        The rules for the host.
    warn : callable
        Prints a warning, given as one line.
    """

    def __init__(self, rules: Rules, warn: Callable[[str], None]) -> None:
        self.rules, self.warn = rules, warn

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Accept or reject the key of a server; paramiko calls this.

        Parameters
        ----------
        client : paramiko.SSHClient
            Not used.
        hostname : str
            Not used: `rules` has it.
        key : paramiko.PKey
            The key that the server presented.

        Raises
        ------
        HostError
            The key is rejected.
        """
        verdict = classify(self.rules, key)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("host key: %s", _describe_verdict(self.rules, key, verdict))
        if verdict.status == "new":
            self._trust_on_first_use(key)
        elif verdict.status != "known" and (verdict.status == "revoked" or self.rules.strict != "no"):
            raise rejection(self.rules, key, verdict)
        elif verdict.status == "changed":
            # As in OpenSSH, only key authentication is used then, which reveals nothing to an eavesdropper. torchfab
            # never forwards the agent.
            self.warn(f"{self.rules.host}: {rejection(self.rules, key, verdict).message}; StrictHostKeyChecking is no")

    def _trust_on_first_use(self, key: paramiko.PKey) -> None:
        if self.rules.strict == "yes":
            raise rejection(self.rules, key, Verdict("new"))
        if not self.rules.user_files:
            return
        try:
            known_hosts.append(self.rules.first_file, [self.rules.line_for(key)])
        except OSError as error:  # as OpenSSH does, which continues
            self.warn(f"{self.rules.host}: its key cannot be written to {self.rules.first_file}: {error.strerror}")


def _describe_verdict(rules: Rules, key: paramiko.PKey, verdict: Verdict) -> str:
    """Describe a key's status in known_hosts, for the debug log."""
    subject = f"{fingerprint(key)} for {rules.name}"
    if verdict.line is not None:
        words = {"known": "is known from", "changed": "is not the key of", "revoked": "is revoked by"}
        return f"{subject} {words[verdict.status]} {verdict.line.location}"
    files = ", ".join(file.path for file in rules.files) or "no known_hosts file"
    return f"{subject} is new: no line of {files} has that name; StrictHostKeyChecking {rules.strict}"


def rejection(rules: Rules, key: paramiko.PKey, verdict: Verdict) -> HostError:
    """Return the error for a key that is rejected.

    Parameters
    ----------
    rules : Rules
        The rules for the host.
    key : paramiko.PKey
        The key that the host presented.
    verdict : Verdict
        New, changed or revoked.

    Returns
    -------
    HostError
        Why the key is rejected, and how to make it known.
    """
    presented, where = fingerprint(key), f" ({verdict.line.location})" if verdict.line else ""
    if verdict.status == "revoked":
        fix = "it must not be trusted any more: give the host a new key, or correct the line"
        return HostError(f"its host key is REVOKED{where}: {presented}", fix, rules.host)
    if verdict.status == "changed":
        return HostError(
            f"its host key has CHANGED: it now presents {presented}, another one is known{where}",
            "the connection may be intercepted; if you know why the key changed: "
            f"{forget_command(rules, verdict)}, then fab trust",
            rules.host,
        )
    return HostError(f"its host key is not known ({presented})", _trust_command(rules), rules.host)


def forget_command(rules: Rules, verdict: Verdict) -> str:
    """Return the command that removes the known keys of a host.

    Parameters
    ----------
    rules : Rules
        The rules for the host.
    verdict : Verdict
        The verdict with the line that has the old key.

    Returns
    -------
    str
        An `ssh-keygen -R` command, as shell.
    """
    path = verdict.line.path if verdict.line else rules.first_file
    return f"ssh-keygen -R {shlex.quote(rules.name)} -f {shlex.quote(path)}"


def _trust_command(rules: Rules) -> str:
    if not rules.user_files:
        return "ssh's configuration has UserKnownHostsFile none for it: name a file there; then: fab trust"
    if rules.alias or not rules.direct:  # ssh-keyscan supports neither aliases nor jump hosts
        return f"if that is the key of {rules.host}: fab trust, which queries all hosts at once"
    keyscan = f"ssh-keyscan -p {rules.port} {rules.host} >> {shlex.quote(rules.first_file)}"
    return f"if that is the key of {rules.host}: {keyscan}; or, for all hosts at once: fab trust"


# ---- key types to request


def requested_algorithms(lines: Sequence[Line], algorithms: str = "") -> tuple[str, ...]:
    """Return the host key algorithms to request from a server, in the order in which OpenSSH prefers them.

    Certificates are requested only if an authority is known: otherwise they prove no more than their keys.

    Parameters
    ----------
    lines : sequence of Line
        The known_hosts lines of the host; the algorithms of known keys come first.
    algorithms : str
        HostKeyAlgorithms. Default: no restriction.

    Returns
    -------
    tuple of str
        Empty if `algorithms` allows none that paramiko supports.
    """
    plain: tuple[str, ...] = paramiko.Transport._preferred_keys  # type: ignore[attr-defined]
    known = {line.kind for line in lines if not line.marker}
    certified = any(line.marker == known_hosts.AUTHORITY for line in lines)
    certificates = tuple(f"{algorithm}{_CERTIFICATE}" for algorithm in plain) if certified else ()
    preferred = (*certificates, *sorted(plain, key=lambda algorithm: _key_type(algorithm) not in known))
    return tuple(each for each in preferred if _is_allowed(each, algorithms))


def _is_allowed(algorithm: str, algorithms: str) -> bool:
    """Whether HostKeyAlgorithms allows an algorithm; `+` and `^` only add, and paramiko has no others to add."""
    if not algorithms or algorithms[0] in "+^":
        return True
    listed = known_hosts.names_match(algorithms.lstrip("-"), algorithm)
    return listed is not algorithms.startswith("-")


def _key_type(algorithm: str) -> str:
    return "ssh-rsa" if algorithm.startswith("rsa-sha2-") else algorithm


def transport_factory(rules: Rules) -> Callable[..., Transport]:
    """Return a factory of transports that request the key types known for a host.

    Parameters
    ----------
    rules : Rules
        The rules for the host.

    Returns
    -------
    callable
        Takes a socket, returns a Transport.

    Raises
    ------
    HostError
        HostKeyAlgorithms allows no algorithm that paramiko supports.
    """
    types = requested_algorithms(rules.lines() or rules.lines_without_port(), rules.algorithms)
    if not types:
        raise HostError(
            f"HostKeyAlgorithms {rules.algorithms} allows none that paramiko supports", "allow ssh-ed25519", rules.host
        )
    return partial(Transport, host_key_types=types)
