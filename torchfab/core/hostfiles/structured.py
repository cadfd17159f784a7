"""Parse JSON and YAML into nested lists and dicts of texts, each with its line number."""

from __future__ import annotations

import json
from typing import Any

from torchfab.core.errors import InventoryError
from torchfab.core.hostfiles.dialect import Source

MAX_VALUES = 200_000  # aliases let a YAML file of 1 MB expand to any number of values


class Text(str):
    """A text from a file.

    Attributes
    ----------
    number : int
        Its line, from 1; 0 if unknown.
    """

    __slots__ = ("number",)
    number: int

    @classmethod
    def at(cls, text: str, number: int) -> Text:
        """Return a text with its line number.

        Parameters
        ----------
        text : str
            The text.
        number : int
            Its line, from 1.

        Returns
        -------
        Text
        """
        found = cls(text)
        found.number = number
        return found


def number_of(text: str) -> int:
    """Return the line number of a text.

    Parameters
    ----------
    text : str
        A text, or a `Text` from a file.

    Returns
    -------
    int
        From 1; 0 if unknown.
    """
    return text.number if isinstance(text, Text) else 0


def load(source: Source) -> Any:
    """Read a JSON or YAML document.

    Parameters
    ----------
    source : Source
        The text.

    Returns
    -------
    dict, list or Text
        All scalars are texts: `0123`, `yes` and `1.10` are not converted.

    Raises
    ------
    InventoryError
        The text is invalid, or expands to too many values.
    """
    is_json = source.text.lstrip().startswith(("{", "["))
    try:
        found = _load_json(source) if is_json else _load_yaml(source)
        _check_size(source, found)
    except RecursionError:
        raise source.error(0, "its lists are nested too deeply", "write one host per line") from None
    return found


def _load_json(source: Source) -> Any:
    try:
        found = json.loads(source.text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise source.error(
            error.lineno, f"not valid JSON: {error.msg}", "correct it, or write one host per line"
        ) from None
    except ValueError as error:  # a number with too many digits
        raise source.error(0, f"not valid JSON: {error}", "correct it, or write one host per line") from None
    return _Cursor(source.text).place(found)


class _Cursor:
    """Finds the line numbers of texts that are queried in the order of the file."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.number = 1

    def place(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._find(key): self.place(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.place(each) for each in value]
        if value is None:
            return None
        return self._find(value) if isinstance(value, str) else Text.at(json.dumps(value), self.number)

    def _find(self, text: str) -> Text:
        quoted = json.dumps(text, ensure_ascii=False)
        position = self.text.find(quoted, self.position)
        if position >= 0:
            self.number += self.text.count("\n", self.position, position)
            self.position = position + len(quoted)
        return Text.at(text, self.number)


def _load_yaml(source: Source) -> Any:
    import yaml  # takes 20 ms, and only these files need it

    class Loader(yaml.BaseLoader):
        """Reads every scalar as text."""

        def construct_scalar(self, node: Any) -> Any:
            text = super().construct_scalar(node)
            empty = node.style is None and text in ("", "~", "null")
            return None if empty else Text.at(text, node.start_mark.line + 1)

    try:
        return yaml.load(source.text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        number = mark.line + 1 if mark else 0
        raise source.error(
            number, f"not valid YAML: {error.problem}", "correct it, or write one host per line"
        ) from None
    except (yaml.YAMLError, TypeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise source.error(0, f"not valid YAML: {first}", "correct it, or write one host per line") from None


def _check_size(source: Source, value: Any) -> None:
    budget = MAX_VALUES
    stack = [value]
    while stack:
        budget -= 1
        if budget < 0:
            raise source.error(0, f"it expands to more than {MAX_VALUES} values", "write one host per line")
        each = stack.pop()
        stack += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()


def text_of(source: Source, value: Any, what: str) -> str:
    """Return a value, checked to be a text.

    Parameters
    ----------
    source : Source
        The file, for messages.
    value : any
        The value.
    what : str
        What it is.

    Returns
    -------
    str

    Raises
    ------
    InventoryError
        The value is a list, a dict or missing.
    """
    if isinstance(value, str):
        return value
    raise InventoryError(f"{source.origin}: {what} is {_kind(value)}, expected a text", "correct it in the file")


def _kind(value: Any) -> str:
    return "missing" if value is None else "a list" if isinstance(value, list) else "a mapping"
