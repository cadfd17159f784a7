"""Command-line flags as dataclass fields with a type: whole numbers with bounds, seconds; a wrong value is an error.

    @dataclass(frozen=True)
    class Flags:
        max_restarts: int = flag(0, "How often torchrun restarts failed ranks. [0]", WholeNumber())

The command line gives every value as text. `parse` converts the values and creates the dataclass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any, Protocol, TypeVar

from torchfab.core.errors import UsageError
from torchfab.core.lazy_dataclass import dataclass

Flags = TypeVar("Flags")
_NO_BOUND = 999_999_999


class FlagType(Protocol):
    """The type of a flag: how its text is converted to a value."""

    @property
    def placeholder(self) -> str:
        """The placeholder of the value in the help: `N`, `SECONDS`."""

    def parse(self, name: str, text: str) -> Any:
        """Convert the text of a flag.

        Parameters
        ----------
        name : str
            The flag with its dashes, for the error.
        text : str
            The text.

        Returns
        -------
        Any
            The value.

        Raises
        ------
        UsageError
            The text is not a value of this type.
        """


@dataclass(frozen=True)
class WholeNumber:
    """A whole number in decimal digits.

    Parameters
    ----------
    low, high : int
        The bounds, both included. Default 0 and 999,999,999.
    zero : str
        The meaning of 0, if 0 is allowed below `low`; empty: 0 is not allowed. Default empty.
    form : str
        Prefix in the error for a number that is part of a value: `N or MIN:MAX, each `. Default empty.
    """

    low: int = 0
    high: int = _NO_BOUND
    zero: str = ""
    form: str = ""

    @property
    def placeholder(self) -> str:
        """The placeholder of the value in the help."""
        return "N"

    def parse(self, name: str, text: str) -> int:
        """Convert the text of a flag to a number.

        Parameters
        ----------
        name, text : str
            The flag with its dashes, and its text.

        Returns
        -------
        int
            The number.

        Raises
        ------
        UsageError
            The text is not a number within the bounds.
        """
        value = int(text) if is_whole(text) else -1
        if self.low <= value <= self.high or (self.zero and value == 0):
            return value
        raise UsageError(f"{name} must be {self.form}{self._range()}{';' if self.zero else ','} got {text!r}")

    def _range(self) -> str:
        bounds = f"of at least {self.low}" if self.high == _NO_BOUND else f"from {self.low} to {self.high}"
        return f"a number {bounds}" + (f", or 0 for {self.zero}" if self.zero else "")


@dataclass(frozen=True)
class Seconds:
    """A number of seconds, as a decimal fraction.

    Parameters
    ----------
    low : float
        The lower bound, included. Default 0.
    """

    low: float = 0.0

    @property
    def placeholder(self) -> str:
        """The placeholder of the value in the help."""
        return "SECONDS"

    def parse(self, name: str, text: str) -> float:
        """Convert the text of a flag to seconds.

        Parameters
        ----------
        name, text : str
            The flag with its dashes, and its text.

        Returns
        -------
        float
            The seconds.

        Raises
        ------
        UsageError
            The text is not a number of seconds, or less than the bound.
        """
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1e6:
            raise UsageError(f"{name} must be a number of seconds, got {text!r}")
        if value < self.low:
            raise UsageError(f"{name} must be at least {self.low:g} seconds, got {text!r}")
        return value


@dataclass(frozen=True)
class NumberOr:
    """A whole number, or one of some keywords.

    Parameters
    ----------
    keywords : tuple of str
        The keywords.
    low, high : int
        The bounds of the number, both included. Default 0 and 999,999,999.
    """

    keywords: tuple[str, ...]
    low: int = 0
    high: int = _NO_BOUND

    @property
    def placeholder(self) -> str:
        """The placeholder of the value in the help."""
        return "|".join(("N", *self.keywords))

    def parse(self, name: str, text: str) -> int | str:
        """Convert the text of a flag to a number or a keyword.

        Parameters
        ----------
        name, text : str
            The flag with its dashes, and its text.

        Returns
        -------
        int or str
            The number, or the keyword.

        Raises
        ------
        UsageError
            The text is neither.
        """
        if text in self.keywords:
            return text
        if is_whole(text) and self.low <= int(text) <= self.high:
            return int(text)
        bounds = "" if self.high == _NO_BOUND else f" from {self.low} to {self.high}"
        raise UsageError(f"{name} must be {', '.join(self.keywords)} or a number{bounds}, got {text!r}")


PORT = WholeNumber(1, 65535, zero="a free one")


def is_whole(text: str, digits: int = 9) -> bool:
    """Return whether a text is a whole number in ASCII digits.

    Parameters
    ----------
    text : str
        The text.
    digits : int
        The maximum number of digits. Default 9.

    Returns
    -------
    bool
        False for the empty text.
    """
    return text.isascii() and text.isdigit() and len(text) <= digits


def flag(default: Any, text: str, kind: FlagType | None = None) -> Any:
    """Return a dataclass field that is a command-line flag.

    Parameters
    ----------
    default : Any
        Its value if it is not given: a text, False for a switch, an empty tuple for a repeatable flag, or a value of
        its type.
    text : str
        Its help.
    kind : FlagType, optional
        Its type. Default: text.

    Returns
    -------
    field
        The dataclass field.
    """
    return field(default=default, metadata={"help": text, "type": kind})


def parse(kind: type[Flags], values: Mapping[str, Any]) -> Flags:
    """Create a dataclass of flags from the values of a command line or a record; missing values have their default.

    Parameters
    ----------
    kind : type
        A dataclass whose fields were made with `flag`.
    values : Mapping of str to Any
        The values by field name. A text is converted to the field's type, a list to a tuple; an empty text for a field
        with a type stands for its default.

    Returns
    -------
    dataclass
        An instance of `kind`.

    Raises
    ------
    UsageError
        A value does not have the type of its flag.
    """
    return kind(**values_of({each.name: each for each in fields(kind)}, values))  # type: ignore[arg-type]


def values_of(flags: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of some flags, each converted to its type, as `parse` does.

    Parameters
    ----------
    flags : Mapping of str to dataclass field
        The fields by name, as `flag` makes them.
    values : Mapping of str to Any
        The values by name; names that are not flags are ignored.

    Returns
    -------
    dict of str to Any
        The converted values by name.

    Raises
    ------
    UsageError
        A value does not have the type of its flag.
    """
    return {name: _value(each, name, values[name]) for name, each in flags.items() if name in values}


def _value(each: Any, name: str, value: Any) -> Any:
    kind: FlagType | None = each.metadata.get("type")
    if isinstance(value, list):
        return tuple(value)
    if kind is None or not isinstance(value, str):
        return value
    return kind.parse(f"--{name.replace('_', '-')}", value) if value else each.default
