"""Reads the values of a YAML or JSON document one by one, so that none is dropped without a note."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchfab.core.hostfiles.structured import number_of
from torchfab.importers.draft import Draft

_REASON = "fab has no flag for it"


class Document:
    """A part of a document, of which every value is either taken or noted.

    Parameters
    ----------
    value : any
        Lists and dicts of texts, as `structured.load` returns them.
    draft : Draft
        Where notes go.
    path : str
        Where the part lies in the document, for notes. Default: at its top.
    """

    def __init__(self, value: Any, draft: Draft, path: str = "") -> None:
        self.value = value
        self.draft = draft
        self.path = path

    def take(self, *keys: str) -> Any:
        """Take the value at a path of keys out of the document; None if there is none."""
        holder = self.value
        for key in keys[:-1]:
            holder = holder.get(key) if isinstance(holder, dict) else None
        return holder.pop(keys[-1], None) if isinstance(holder, dict) else None

    def text(self, *keys: str) -> str:
        """Take a text out of the document; empty if there is none, and noted if it is a list or a mapping."""
        value = self.take(*keys)
        if value is None or isinstance(value, str):
            return value or ""
        self.note(value, ".".join((self.path, *keys)).lstrip("."), _REASON)
        return ""

    def drop(self, reason: str, *keys: str) -> None:
        """Take a value out of the document and note it with a reason."""
        value = self.take(*keys)
        if value is not None:
            self.note(value, ".".join((self.path, *keys)).lstrip("."), reason)

    def part(self, *keys: str) -> Document:
        """Take a mapping out of the document, as a part of its own."""
        value = self.take(*keys)
        path = ".".join((self.path, *keys)).lstrip(".")
        if value is not None and not isinstance(value, dict):
            self.note(value, path, _REASON)
        return Document(value if isinstance(value, dict) else {}, self.draft, path)

    def items(self, *keys: str) -> list[Document]:
        """Take a list of mappings out of the document, each as a part of its own."""
        value = self.take(*keys)
        path = ".".join((self.path, *keys)).lstrip(".")
        entries = value if isinstance(value, list) else []
        for entry in entries:
            if not isinstance(entry, dict):
                self.note(entry, path, _REASON)
        return [Document(entry, self.draft, path) for entry in entries if isinstance(entry, dict)]

    def texts(self, *keys: str) -> list[str]:
        """Take a list of texts out of the document."""
        value = self.take(*keys)
        entries = value if isinstance(value, list) else [] if value is None else [value]
        for entry in entries:
            if not isinstance(entry, str):
                self.note(entry, ".".join((self.path, *keys)).lstrip("."), _REASON)
        return [entry for entry in entries if isinstance(entry, str)]

    def rest(self, reason: str = _REASON) -> None:
        """Note all that was not taken."""
        self.note(self.value, self.path, reason)

    def note(self, value: Any, path: str, reason: str) -> None:
        """Note each text of a value, with its line."""
        for where, number, text in _leaves(value, path):
            self.draft.skip(number, f"{where}: {text}" if text else where, reason)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, int, str]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each, path)
    elif value is not None:
        yield path, number_of(value), value
