"""Read the values of a YAML or JSON document one by one, so that each is either converted or noted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchfab.core.hostfiles.structured import number_of
from torchfab.importers.draft import Draft

_REASON = "fab has no flag for it"


class Document:
    """A part of a document. Each of its values is either taken or noted.

    Parameters
    ----------
    value : any
        Lists and dicts of texts, as `structured.load` returns them.
    draft : Draft
        Receives the notes.
    path : str
        Path of the part in the document, for notes. Default: the whole document.
    """

    def __init__(self, value: Any, draft: Draft, path: str = "") -> None:
        self.value = value
        self.draft = draft
        self.path = path

    def take(self, *keys: str) -> Any:
        """Remove the value at a path of keys from the document and return it.

        Parameters
        ----------
        keys : str
            The keys, from the outermost one.

        Returns
        -------
        any
            None if there is no such value.
        """
        holder = self.value
        for key in keys[:-1]:
            holder = holder.get(key) if isinstance(holder, dict) else None
        return holder.pop(keys[-1], None) if isinstance(holder, dict) else None

    def text(self, *keys: str) -> str:
        """Remove a text from the document and return it.

        Parameters
        ----------
        keys : str
            The keys, from the outermost one.

        Returns
        -------
        str
            Empty if there is none. A list or a mapping is noted, and the result is empty.
        """
        value = self.take(*keys)
        if value is None or isinstance(value, str):
            return value or ""
        self.note(value, ".".join((self.path, *keys)).lstrip("."), _REASON)
        return ""

    def drop(self, reason: str, *keys: str) -> None:
        """Remove a value from the document and note it.

        Parameters
        ----------
        reason : str
            Why it is not carried over, or what to do instead.
        keys : str
            The keys, from the outermost one.
        """
        value = self.take(*keys)
        if value is not None:
            self.note(value, ".".join((self.path, *keys)).lstrip("."), reason)

    def part(self, *keys: str) -> Document:
        """Remove a mapping from the document and return it as a document.

        Parameters
        ----------
        keys : str
            The keys, from the outermost one.

        Returns
        -------
        Document
            Empty if there is no such mapping.
        """
        value = self.take(*keys)
        path = ".".join((self.path, *keys)).lstrip(".")
        if value is not None and not isinstance(value, dict):
            self.note(value, path, _REASON)
        return Document(value if isinstance(value, dict) else {}, self.draft, path)

    def items(self, *keys: str) -> list[Document]:
        """Remove a list of mappings from the document and return each as a document.

        Parameters
        ----------
        keys : str
            The keys, from the outermost one.

        Returns
        -------
        list of Document
            Entries that are not mappings are noted.
        """
        value = self.take(*keys)
        path = ".".join((self.path, *keys)).lstrip(".")
        entries = value if isinstance(value, list) else []
        for entry in entries:
            if not isinstance(entry, dict):
                self.note(entry, path, _REASON)
        return [Document(entry, self.draft, path) for entry in entries if isinstance(entry, dict)]

    def texts(self, *keys: str) -> list[str]:
        """Remove a list of texts from the document and return it.

        Parameters
        ----------
        keys : str
            The keys, from the outermost one.

        Returns
        -------
        list of str
            Entries that are not texts are noted.
        """
        value = self.take(*keys)
        entries = value if isinstance(value, list) else [] if value is None else [value]
        for entry in entries:
            if not isinstance(entry, str):
                self.note(entry, ".".join((self.path, *keys)).lstrip("."), _REASON)
        return [entry for entry in entries if isinstance(entry, str)]

    def rest(self, reason: str = _REASON) -> None:
        """Note everything that is still in the document.

        Parameters
        ----------
        reason : str
            Why it is not carried over. Default: fab has no flag for it.
        """
        self.note(self.value, self.path, reason)

    def note(self, value: Any, path: str, reason: str) -> None:
        """Note each text of a value, with its line.

        Parameters
        ----------
        value : any
            The value.
        path : str
            Its path in the document: `spec.template`.
        reason : str
            Why it is not carried over, or what to do instead.
        """
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
