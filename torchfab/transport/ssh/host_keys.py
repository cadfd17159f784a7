"""Host keys, as OpenSSH treats them: known and equal, or refused; Fabric itself would take any.

What known_hosts says is read in `knownhosts`; here it meets paramiko: which keys a server is asked for, and what
becomes of the one that it shows.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import paramiko

from torchfab.core.errors import HostError
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


@dataclass(frozen=True)
class Rules:
    """What ssh's configuration and known_hosts say of one host.

    Parameters
    ----------
    host, port : str, int
        As it is connected to.
    alias : str
        HostKeyAlias: the name under which its key is known; empty for the host's own.
    strict : str
        `yes` (also where OpenSSH would ask: nobody is there to answer), `accept-new` or `no`.
    user_files : tuple of str
        Where new keys are written: into the first. Empty for `UserKnownHostsFile none`.
    hashes : bool
        HashKnownHosts: whether names are written hashed.
    files : tuple of KnownFile
        All that exist.
    algorithms : str
        HostKeyAlgorithms: which to ask for; empty for all.
    direct : bool
        Whether the host is reached without another one between.
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
        """The name under which the host is looked up: its alias, `host` or `[host]:port`."""
        host = self.host.lower()
        return self.alias or (host if self.port == 22 else f"[{host}]:{self.port}")

    @property
    def first_file(self) -> str:
        """The file to which keys are added."""
        return self.user_files[0] if self.user_files else "~/.ssh/known_hosts"

    def lines(self) -> tuple[Line, ...]:
        """Return what is known of the host."""
        return known_hosts.lines_of(self.files, self.name)

    def lines_without_port(self) -> tuple[Line, ...]:
        """Return what is known of the host at its usual port: OpenSSH takes that where no other is known."""
        return () if self.alias or self.port == 22 else known_hosts.lines_of(self.files, self.host)

    def line_for(self, key: paramiko.PKey) -> str:
        """Return the line of known_hosts that makes a key known."""
        name = known_hosts.hashed(self.name, os.urandom(20)) if self.hashes else self.name
        return f"{name} {key.get_name()} {key.get_base64()}"


def rules_of(route: Route) -> Rules:
    """Return the rules for a host.

    Raises
    ------
    HostError
        StrictHostKeyChecking is nothing that OpenSSH knows.
    """
    options = route.options
    strict = options.text("stricthostkeychecking", "ask").lower()
    if strict not in _STRICT:
        where = options.where("stricthostkeychecking")
        raise HostError(f"{where}: StrictHostKeyChecking is {strict!r}", "one of yes, ask, accept-new, no", route.host)
    user = _paths(route, "userknownhostsfile", USER_FILES)
    system = _paths(route, "globalknownhostsfile", SYSTEM_FILES)
    return Rules(
        route.host,
        route.port,
        alias=options.text("hostkeyalias").lower(),
        strict=_STRICT[strict],
        user_files=user,
        hashes=options.is_on("hashknownhosts"),
        files=known_hosts.read((*user, *system)),
        algorithms=options.text("hostkeyalgorithms"),
        direct=not (route.jumps or route.proxy_command),
    )


def _paths(route: Route, name: str, default: Sequence[str]) -> tuple[str, ...]:
    words = route.options.words(name) or default
    nowhere = len(words) == 1 and words[0].lower() in ("none", os.devnull)
    return () if nowhere else tuple(route.path(word, name) for word in words)


# ---- what a key is


def fingerprint(key: paramiko.PKey) -> str:
    """Return a key's fingerprint as `ssh-keygen -l` prints it."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


def long_fingerprint(key: paramiko.PKey, name: str) -> str:
    """Return the whole line of `ssh-keygen -l` for the key of a host."""
    kind = key.get_name().removeprefix("ssh-").partition("-")[0].upper()
    return f"{key.get_bits()} {fingerprint(key).split()[1]} {name} ({kind})"


def judge(rules: Rules, key: paramiko.PKey) -> Verdict:
    """Say what is known of the key that a host shows.

    Raises
    ------
    HostError
        It comes with a certificate of an authority that is trusted for this host, but which is not good.
    """
    blob = key.asbytes()
    certificate = _certificate(key)
    authority = certificate.authority if certificate else None
    verdict = known_hosts.judge(rules.lines(), blob, authority)
    if verdict.standing == "new":
        other = known_hosts.judge(rules.lines_without_port(), blob, authority)
        verdict = other if other.standing in ("known", "revoked") else verdict
    if certificate and verdict.line and verdict.line.marker == known_hosts.AUTHORITY and verdict.standing == "known":
        objection = host_certificates.objection(certificate, rules.alias or rules.host, time.time())
        if objection:
            raise HostError(
                f"its host certificate {certificate.key_id!r} is refused: {objection}",
                f"have its keys signed anew (ssh-keygen -s CA -h -n {rules.alias or rules.host} KEY.pub); "
                f"the authority is that of {verdict.line.where}",
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


# ---- what becomes of it


class HostKeyPolicy(paramiko.MissingHostKeyPolicy):
    """Let nobody in whose key is not the host's.

    paramiko's own store of keys stays empty, so that it asks us about every key.

    Parameters
    ----------
    rules : Rules
        For the host that is connected to.
    warn : callable
        Takes a line for the user.
    """

    def __init__(self, rules: Rules, warn: Callable[[str], None]) -> None:
        self.rules, self.warn = rules, warn

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Return if the key is good, or may be taken; else raise HostError."""
        verdict = judge(self.rules, key)
        if verdict.standing == "new":
            self._trust_on_first_use(key)
        elif verdict.standing != "known" and (verdict.standing == "revoked" or self.rules.strict != "no"):
            raise refusal(self.rules, key, verdict)
        elif verdict.standing == "changed":
            # As OpenSSH: only with a key, which tells nothing to who listens in. We never forward the agent.
            self.warn(f"{self.rules.host}: {refusal(self.rules, key, verdict).message}; StrictHostKeyChecking is no")

    def _trust_on_first_use(self, key: paramiko.PKey) -> None:
        if self.rules.strict == "yes":
            raise refusal(self.rules, key, Verdict("new"))
        if not self.rules.user_files:
            return
        try:
            known_hosts.append(self.rules.first_file, [self.rules.line_for(key)])
        except OSError as error:  # as OpenSSH, which goes on
            self.warn(f"{self.rules.host}: its key cannot be remembered in {self.rules.first_file}: {error.strerror}")


def refusal(rules: Rules, key: paramiko.PKey, verdict: Verdict) -> HostError:
    """Return why a key is refused, and what makes the host known."""
    shown, where = fingerprint(key), f" ({verdict.line.where})" if verdict.line else ""
    if verdict.standing == "revoked":
        fix = "it is not to be trusted any more: the host needs a new key, or the line is wrong"
        return HostError(f"its host key is REVOKED{where}: {shown}", fix, rules.host)
    if verdict.standing == "changed":
        return HostError(
            f"its host key has CHANGED: it now shows {shown}, another one is known{where}",
            "somebody may be listening in; if you know why it changed: "
            f"{forget_command(rules, verdict)}, then fab trust",
            rules.host,
        )
    return HostError(f"its host key is not known ({shown})", _introduction(rules), rules.host)


def forget_command(rules: Rules, verdict: Verdict) -> str:
    """Return the command that forgets what is known of a host."""
    path = verdict.line.path if verdict.line else rules.first_file
    return f"ssh-keygen -R {shlex.quote(rules.name)} -f {shlex.quote(path)}"


def _introduction(rules: Rules) -> str:
    if not rules.user_files:
        return "ssh's configuration has UserKnownHostsFile none for it: name a file there; then: fab trust"
    if rules.alias or not rules.direct:  # ssh-keyscan knows neither another name nor a way round
        return f"if that is the key of {rules.host}: fab trust, which asks all hosts at once"
    keyscan = f"ssh-keyscan -p {rules.port} {rules.host} >> {shlex.quote(rules.first_file)}"
    return f"if that is the key of {rules.host}: {keyscan}; or, for all hosts at once: fab trust"


# ---- how it is asked for


def wanted_types(lines: Sequence[Line], algorithms: str = "") -> tuple[str, ...]:
    """Return the host key algorithms to ask for: those whose keys are known first, as OpenSSH does.

    Certificates are asked for only where an authority is known: else they are no better than their keys.
    """
    plain: tuple[str, ...] = paramiko.Transport._preferred_keys  # type: ignore[attr-defined]
    known = {line.kind for line in lines if not line.marker}
    certified = any(line.marker == known_hosts.AUTHORITY for line in lines)
    certificates = tuple(f"{algorithm}{_CERTIFICATE}" for algorithm in plain) if certified else ()
    wanted = (*certificates, *sorted(plain, key=lambda algorithm: _kind(algorithm) not in known))
    return tuple(each for each in wanted if _is_allowed(each, algorithms))


def _is_allowed(algorithm: str, algorithms: str) -> bool:
    """Say whether HostKeyAlgorithms allows an algorithm; `+` and `^` take nothing away, and paramiko has no more."""
    if not algorithms or algorithms[0] in "+^":
        return True
    listed = known_hosts.names_match(algorithms.lstrip("-"), algorithm)
    return listed is not algorithms.startswith("-")


def _kind(algorithm: str) -> str:
    return "ssh-rsa" if algorithm.startswith("rsa-sha2-") else algorithm


def transport_factory(rules: Rules) -> Callable[..., Transport]:
    """Return what makes a transport that asks the host for the keys that are known."""
    types = wanted_types(rules.lines() or rules.lines_without_port(), rules.algorithms)
    if not types:
        raise HostError(
            f"HostKeyAlgorithms {rules.algorithms} leaves none that paramiko has", "allow ssh-ed25519", rules.host
        )
    return partial(Transport, host_key_types=types)
