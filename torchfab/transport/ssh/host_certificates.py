"""Parse and check host certificates of OpenSSH (PROTOCOL.certkeys).

paramiko extracts only the key from a certificate. This module checks its signature, kind, names, dates and critical
options.
"""

from __future__ import annotations

import paramiko
from paramiko.message import Message

from torchfab.core.lazy_dataclass import dataclass

_HOST = 2
_FOREVER = (1 << 64) - 1
_KEY_FIELDS = {"ssh-rsa": 2, "ssh-ed25519": 1}  # fields of the public key; an ECDSA key has two: curve and point


@dataclass(frozen=True)
class Certificate:
    """A parsed certificate.

    Parameters
    ----------
    kind : int
        1 for a user certificate, 2 for a host certificate.
    key_id : str
        The identifier that the certificate authority assigned.
    principals : tuple of str
        The host names that it is valid for; empty for all.
    valid_after, valid_before : int
        Seconds since the epoch.
    critical : bytes
        Options that a verifier must understand; none are defined for hosts.
    authority : bytes
        The public key that signed it.
    signed, signature : bytes
        The signed part, and its signature.
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
    """Parse a certificate.

    Parameters
    ----------
    blob : bytes
        The certificate in SSH's wire format.

    Returns
    -------
    Certificate
        Its fields, not checked.

    Raises
    ------
    ValueError
        `blob` is not a certificate.
    """
    message = Message(blob)
    try:
        plain = message.get_text().partition("-cert-v01@")[0]
        for _ in range(1 + _KEY_FIELDS.get(plain, 2)):  # the nonce precedes the key's fields
            message.get_binary()
        message.get_int64()  # its serial number
        kind, key_id = message.get_int(), message.get_text()
        principals = _texts(message.get_binary())
        after, before = message.get_int64(), message.get_int64()
        critical, _extensions, _reserved = (message.get_binary() for _ in range(3))
        authority = message.get_binary()
        signed = message.get_so_far()
        signature = message.get_binary()
    except Exception as error:  # paramiko's parser raises many types
        raise ValueError(f"malformed: {error}") from error
    return Certificate(kind, key_id, principals, after, before, critical, authority, signed, signature)


def _texts(data: bytes) -> tuple[str, ...]:
    message = Message(data)
    texts = []
    while message.get_remainder():
        texts.append(message.get_text())
    return tuple(texts)


def rejection_reason(certificate: Certificate, host: str, now: float) -> str:
    """Return why a certificate does not prove that its key belongs to a host.

    Parameters
    ----------
    certificate : Certificate
        A certificate of an authority that is trusted for this host.
    host : str
        The name that was connected to, or its HostKeyAlias; without a port.
    now : float
        Seconds since the epoch.

    Returns
    -------
    str
        The reason; empty if the certificate is valid for the host.
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
        return "it has critical options, and none are defined for hosts"
    return "" if _is_signed(certificate) else "its signature is wrong"


def _is_signed(certificate: Certificate) -> bool:
    try:
        kind = Message(certificate.authority).get_text()
        authority = paramiko.PKey.from_type_string(kind, certificate.authority)
        return bool(authority.verify_ssh_sig(certificate.signed, Message(certificate.signature)))
    except Exception:  # the authority's key has a type that paramiko does not support
        return False
