"""Host certificates of OpenSSH (PROTOCOL.certkeys): whether one says that a key is a host's, signed by whom.

paramiko takes the key out of a certificate and looks at nothing else in it; signature, kind, names, dates and critical
options are checked here.
"""

from __future__ import annotations

from dataclasses import dataclass

import paramiko
from paramiko.message import Message

_HOST = 2
_FOREVER = (1 << 64) - 1
_NUMBERS = {"ssh-rsa": 2, "ssh-ed25519": 1}  # how many fields the key itself has; an ECDSA key: its curve and a point


@dataclass(frozen=True)
class Certificate:
    """A certificate, taken apart.

    Parameters
    ----------
    kind : int
        1: of a user, 2: of a host.
    key_id : str
        What its authority calls it.
    principals : tuple of str
        The host names it is for; empty for all.
    valid_after, valid_before : int
        Seconds since the epoch.
    critical : bytes
        Options that must be understood; a host has none.
    authority : bytes
        The key that signed it.
    signed, signature : bytes
        What is signed, and how.
    """

    kind: int
    key_id: str
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    critical: bytes
    authority: bytes
    signed: bytes
    signature: bytes


def read(blob: bytes) -> Certificate:
    """Take a certificate apart.

    Raises
    ------
    ValueError
        It is none.
    """
    message = Message(blob)
    try:
        plain = message.get_text().partition("-cert-v01@")[0]
        for _ in range(1 + _NUMBERS.get(plain, 2)):  # a nonce comes first
            message.get_binary()
        message.get_int64()  # its serial number
        kind, key_id = message.get_int(), message.get_text()
        principals = _texts(message.get_binary())
        after, before = message.get_int64(), message.get_int64()
        critical, _extensions, _reserved = (message.get_binary() for _ in range(3))
        authority = message.get_binary()
        signed = message.get_so_far()
        signature = message.get_binary()
    except Exception as error:  # paramiko's reader says what it stumbles over in many ways
        raise ValueError(f"malformed: {error}") from error
    return Certificate(kind, key_id, principals, after, before, critical, authority, signed, signature)


def _texts(data: bytes) -> tuple[str, ...]:
    message = Message(data)
    found = []
    while message.get_remainder():
        found.append(message.get_text())
    return tuple(found)


def objection(certificate: Certificate, host: str, now: float) -> str:
    """Return why a certificate does not say that its key is the host's; empty when it does.

    Parameters
    ----------
    certificate : Certificate
        Whose authority is trusted for this host.
    host : str
        As it was connected to, or its HostKeyAlias; without a port.
    now : float
        Seconds since the epoch.
    """
    if certificate.kind != _HOST:
        return "it is a user's, not a host's"
    if not certificate.valid_after <= now:
        return "it is not valid yet"
    if certificate.valid_before != _FOREVER and not now < certificate.valid_before:
        return "it has expired"
    if certificate.principals and host.lower() not in certificate.principals:
        return f"it is for {', '.join(certificate.principals)}, not for {host}"
    if certificate.critical:
        return "it has critical options, which nobody knows for hosts"
    return "" if _is_signed(certificate) else "its signature is wrong"


def _is_signed(certificate: Certificate) -> bool:
    try:
        kind = Message(certificate.authority).get_text()
        authority = paramiko.PKey.from_type_string(kind, certificate.authority)
        return bool(authority.verify_ssh_sig(certificate.signed, Message(certificate.signature)))
    except Exception:  # an authority with a kind of key that paramiko does not know cannot be asked
        return False
