"""Expand words of a shell script with the values that the script itself sets. Nothing is run.

Parts that only a shell or the job's environment could resolve are kept as dynamic parts (`draft.dynamic`).
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import field

from torchfab.core.lazy_dataclass import dataclass
from torchfab.importers.draft import CLOSE, OPEN, dynamic, is_dynamic
from torchfab.importers.shell_scanner import skip_part, statements

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BRACED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-=])(.*))?\}", re.DOTALL)
_ELEMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\[(@|\*|\d{1,6})\]\}")
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{1,4}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b", "E": "\x1b"}
_FIELD = re.compile(f"(?:{OPEN}[^{OPEN}{CLOSE}]*{CLOSE}|[^ \\t\\n{OPEN}{CLOSE}])+")
_MAX_DEPTH = 20
_MAX_LENGTH = 50_000  # a variable may contain itself twice, repeatedly
_ARITHMETIC: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass
class Expander:
    """Expands words with the variables that are known.

    Attributes
    ----------
    variables : dict of str to str
        Their values, which may have dynamic parts.
    used : set of str
        The names of all variables that were read so far.
    defaults : dict of str to str
        Values that were taken from `${NAME:-value}`, by name.
    arrays : dict of str to list of str
        The elements of arrays.
    """

    variables: dict[str, str]
    used: set[str] = field(default_factory=set)
    defaults: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, list[str]] = field(default_factory=dict)
    depth: int = 0

    def set_array(self, name: str, raw: str, extend: bool) -> None:
        """Set an array from `(word word)`, or extend it.

        Parameters
        ----------
        name : str
            Name of the array.
        raw : str
            Its words in brackets: `(word word)`.
        extend : bool
            Whether to append to the array (`+=`).
        """
        values = list(self.arrays.get(name, ())) if extend else []
        length = sum(map(len, values))
        for each in statements(raw[1:].removesuffix(")")):
            for value in (part for word in each.words for part in self.fields(word)):
                length += len(value) + 1
                if length <= _MAX_LENGTH:
                    values.append(value)
        self.arrays[name] = values
        self.variables[name] = values[0] if values else ""

    def fields(self, raw: str) -> list[str]:
        """Return the words that a raw word expands to.

        Parameters
        ----------
        raw : str
            The word, with its quotes.

        Returns
        -------
        list of str
            Empty for an empty variable; several for an unquoted value with blanks.
        """
        element = _ELEMENT.fullmatch(raw.strip('"'))
        if element and element[2] == "@" and element[1] in self.arrays:
            self.used.add(element[1])
            values = self.arrays[element[1]]
            return list(values) if raw.startswith('"') else [part for value in values for part in _FIELD.findall(value)]
        fields: list[str] = []
        current: str | None = None
        for text, quoted in self._parts(raw):
            if quoted:
                current = (current or "") + text
                continue
            pieces = _FIELD.findall(text)
            if current is not None and pieces and not text[0].isspace():
                current += pieces.pop(0)
            elif current is not None and text[:1].isspace():
                fields.append(current)
                current = None
            for piece in pieces:
                if current is not None:
                    fields.append(current)
                current = piece
            if current is not None and text[-1:].isspace():
                fields.append(current)
                current = None
        return fields if current is None else [*fields, current]

    def value(self, raw: str) -> str:
        """Expand a raw word as the value of a variable, which is not split at blanks.

        Parameters
        ----------
        raw : str
            The word, with its quotes.

        Returns
        -------
        str
            At most 50,000 characters.
        """
        return "".join(text for text, _ in self._parts(raw))[:_MAX_LENGTH]

    def _parts(self, raw: str) -> list[tuple[str, bool]]:
        """Return the expanded parts of a raw word, and for each whether it was quoted."""
        parts: list[tuple[str, bool]] = []
        position = 0
        while position < len(raw):
            end = skip_part(raw, position)
            piece = raw[position:end]
            if piece.startswith("\\"):
                parts.append((piece[1:], True))
            elif piece.startswith("'"):
                parts.append((piece[1:].removesuffix("'"), True))
            elif piece.startswith('"'):
                parts.append((self._double_quoted(piece[1:].removesuffix('"')), True))
            elif piece.startswith("$'"):
                parts.append((_ESCAPE.sub(_escaped, piece[2:].removesuffix("'")), True))
            elif piece.startswith('$"'):
                parts.append((self._double_quoted(piece[2:].removesuffix('"')), True))
            elif piece.startswith(("$", "`")):
                end = self._name_end(raw, position, end)
                parts.append((self._substitution(raw[position:end]), False))
            elif piece.startswith("("):  # an array
                parts.append((dynamic(piece), True))
            else:
                parts.append((piece, False))
            position = end
        return parts

    def _double_quoted(self, text: str) -> str:
        found: list[str] = []
        position = 0
        while position < len(text):
            sign = text[position]
            if sign == "\\":
                escaped = text[position + 1 : position + 2]
                found.append("" if escaped == "\n" else escaped if escaped in '$`"\\' else f"\\{escaped}")
                position += 2
            elif sign in "$`" and text[position : position + 2] not in ("$'", '$"'):
                end = self._name_end(text, position, skip_part(text, position))
                found.append(self._substitution(text[position:end]))
                position = end
            else:
                found.append(sign)
                position += 1
        return "".join(found)

    @staticmethod
    def _name_end(text: str, position: int, end: int) -> int:
        """Return where `$NAME` or `$1` ends; `end` for any other substitution."""
        if text[position] != "$" or end > position + 1:
            return end
        name = _NAME.match(text, position + 1)
        if name:
            return name.end()
        return min(position + 2, len(text)) if text[position + 1 : position + 2] in "0123456789@*#?$!-" else end

    def _substitution(self, source: str) -> str:
        if source == "$":
            return "$"
        if source.startswith("$((") and source.endswith("))"):
            return self._arithmetic(source)
        name = _NAME.fullmatch(source[1:])
        if source.startswith("$") and name:
            return self._variable(name[0], source, None)
        element = _ELEMENT.fullmatch(source)
        if element and element[1] in self.arrays:
            return self._element(element[1], element[2], source)
        braced = _BRACED.fullmatch(source)
        if braced:
            return self._variable(braced[1], source, braced[3], unless_empty=(braced[2] or "").startswith(":"))
        self.used.update(_NAME.findall(source))
        return dynamic(source)

    def _variable(self, name: str, source: str, default: str | None, unless_empty: bool = False) -> str:
        self.used.add(name)
        if name in self.variables and (self.variables[name] or not unless_empty):
            return self.variables[name]
        if default is None or self.depth > _MAX_DEPTH:
            return dynamic(source)
        self.depth += 1
        value = self.value(default)
        self.depth -= 1
        self.defaults[name] = value
        return value

    def _element(self, name: str, index: str, source: str) -> str:
        """Return an element of an array, or all of them in one text."""
        self.used.add(name)
        values = self.arrays[name]
        if not index.isdigit():
            return " ".join(values)
        known = values[: int(index) + 1]
        return known[-1] if len(known) > int(index) and not any(map(is_dynamic, known)) else dynamic(source)

    def _arithmetic(self, source: str) -> str:
        expression = re.sub(r"\$\{?([A-Za-z_]\w*)\}?", r"\1", source[3:-2])
        self.used.update(_NAME.findall(expression))
        try:
            return str(self._number(ast.parse(expression.strip(), mode="eval").body, 0))
        except (SyntaxError, ValueError, TypeError, ZeroDivisionError, RecursionError, MemoryError, OverflowError):
            return dynamic(source)

    def _number(self, node: ast.expr, depth: int) -> int:
        if depth > _MAX_DEPTH:
            raise ValueError("too deep")
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return _ARITHMETIC[type(node.op)](self._number(node.left, depth + 1), self._number(node.right, depth + 1))
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and not is_dynamic(self.variables.get(node.id, OPEN)):
            return int(self.variables[node.id][:9])
        raise ValueError("not a number")


def _escaped(match: re.Match[str]) -> str:
    """Return the character that an escape of `$'text'` stands for."""
    code = match[1]
    if code[0] in "xu" and len(code) > 1:
        return chr(int(code[1:], 16)).strip(OPEN + CLOSE)
    return (
        chr(int(code, 8) % 256)
        if code[0] in "01234567"
        else _ESCAPES.get(code, code if code in "'\"\\?" else f"\\{code}")
    )
