"""What all documents have: the version, hosts that failed, and descriptions of fields."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

Seconds: TypeAlias = Annotated[float, Meta(description="Seconds.")]
Time: TypeAlias = Annotated[float, Meta(description="Seconds since 1970-01-01 UTC.")]
Host: TypeAlias = Annotated[str, Meta(description="The host, as in the hosts file.")]
Text: TypeAlias = Annotated[str, Meta(description="Text for people; it may change.")]


def about(text: str) -> Meta:
    """Return the description of a field.

    Parameters
    ----------
    text : str
        One sentence, with the unit.

    Returns
    -------
    Meta
    """
    return Meta(description=text)


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An object within a document."""


class Document(Part, frozen=True, kw_only=True):
    """A document, or an element of a list of documents."""

    version: Annotated[int, about("The version of the schema: 1.")]


class HostError(Part, frozen=True):
    """Why a host failed."""

    error: Annotated[str, about("What failed.")]
    fix: Annotated[str, about("How to fix it; empty if that is not known.")]


Failed: TypeAlias = Annotated[dict[str, HostError], about("The hosts that could not be asked, with the reason.")]
