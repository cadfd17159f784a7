"""Split a shell script into simple commands and raw words. Nothing is expanded or run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field

from torchfab.core.lazy_dataclass import dataclass

_ESCAPED = re.compile(r"\\([$`\\])")  # in a here-document whose delimiter has no quotes
_OPERATORS = ("&&", "||", ";;", "|&", ";", "|", "&", "(", ")")
_REDIRECTIONS = ("<<<", "<<-", "&>>", ">>", "<<", "&>", ">&", "<&", "<>", ">|", ">", "<")
MAX_DEPTH = 100  # substitutions within substitutions; what is deeper counts as the rest of the text
_KEYWORDS = frozenset(
    ("if", "then", "else", "elif", "do", "while", "until", "!", "{", "}", "fi", "done", "time", "exec")
)


@dataclass(frozen=True)
class Statement:
    """A simple command.

    Parameters
    ----------
    number : int
        Its line, from 1.
    words : tuple of str
        Its words, with their quotes; without redirections.
    piped : bool
        Whether it reads the output of the command before it.
    writes : str
        The file that its output goes to, with its quotes; empty for none.
    here : tuple of str
        The here-documents that it reads.
    """

    number: int
    words: tuple[str, ...]
    piped: bool = False
    writes: str = ""
    here: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unclosed:
    """A quote or bracket without its end.

    Parameters
    ----------
    number : int
        Its line, from 1.
    sign : str
        The quote, or the character that begins the bracket: `"`, `'`, `$`.
    text : str
        Everything from it to the end of the script.
    """

    number: int
    sign: str
    text: str


@dataclass
class _Scanner:
    text: str
    unclosed: Unclosed | None = None
    position: int = 0
    words: list[str] = field(default_factory=list)
    begin: int = 0
    piped: bool = False
    writes: str = ""
    here_documents: list[str] = field(default_factory=list)

    def statements(self) -> Iterator[Statement]:
        while self.position < len(self.text):
            sign = self.text[self.position]
            if sign == "\n":
                self.position += 1
                yield from self._end(here=tuple(self._read_here_documents()))
            elif sign.isspace() or self.text.startswith("\\\n", self.position):
                self.position += 1 if sign.isspace() else 2
            elif sign == "#":
                self.position = self._line_end()
            elif operator := self._operator(_REDIRECTIONS):
                self._redirection(operator)
            elif operator := self._operator(_OPERATORS):
                yield from self._end(operator)
            else:
                self._word()
        yield from self._end()

    def _operator(self, operators: tuple[str, ...]) -> str:
        return next((each for each in operators if self.text.startswith(each, self.position)), "")

    def _end(self, operator: str = "", here: tuple[str, ...] = ()) -> Iterator[Statement]:
        self.position += len(operator)
        words = list(self.words)
        while words and words[0] in _KEYWORDS:
            words.pop(0)
        if words:
            yield Statement(self.text.count("\n", 0, self.begin) + 1, tuple(words), self.piped, self.writes, here)
        self.words, self.piped, self.writes = [], operator in ("|", "|&"), ""

    def _word(self) -> None:
        start = self.position
        word = self._skip_word()
        if word.isdigit() and self.text[self.position : self.position + 1] in ("<", ">"):
            return  # the number of a file descriptor: 2>&1
        if not self.words:
            self.begin = start
        self.words.append(word.replace("\\\n", ""))

    def _skip_word(self) -> str:
        """Go behind the word at the position, and return it."""
        start = self.position
        self.position = skip_word(self.text, start)
        if self.position == len(self.text):
            self._find_unclosed(start)
        return self.text[start : self.position]

    def _find_unclosed(self, start: int) -> None:
        """Look for a part of the script's last word that would also take in a character behind the script."""
        longer = self.text + "x"
        while start < len(self.text):
            end = skip_part(longer, start)
            if end > len(self.text) and self.text[start] != "\\":
                number = self.text.count("\n", 0, start) + 1
                self.unclosed = Unclosed(number, self.text[start], self.text[start:])
            start = end

    def _redirection(self, operator: str) -> None:
        self.position += len(operator)
        while self.text[self.position : self.position + 1] in (" ", "\t"):
            self.position += 1
        target = self._skip_word() if self.text[self.position : self.position + 1] not in ("", "\n") else ""
        if operator in (">", ">>", "&>", "&>>", ">|"):
            self.writes = target
        if operator in ("<<", "<<-"):
            self.here_documents.append(target)

    def _read_here_documents(self) -> list[str]:
        found: list[str] = []
        for raw in self.here_documents:
            delimiter = raw.strip("'\"").replace("\\", "")
            lines: list[str] = []
            while self.position < len(self.text):
                end = self._line_end()
                line = self.text[self.position : end]
                self.position = end + 1
                if line.strip("\t") == delimiter:
                    break
                lines.append(line)
            text = "\n".join(lines)
            found.append(text if raw != delimiter else _ESCAPED.sub(r"\1", text))
        self.here_documents = []
        return found

    def _line_end(self) -> int:
        end = self.text.find("\n", self.position)
        return len(self.text) if end < 0 else end


def skip_word(text: str, start: int) -> int:
    """Return the end of the word that begins at a position.

    Parameters
    ----------
    text : str
        The script.
    start : int
        Index of the first character of the word.

    Returns
    -------
    int
        Index after the word; at least `start` + 1.
    """
    position = start
    while position < len(text):
        sign = text[position]
        if sign in " \t\n;|&<>()" and not (sign == "(" and text[position - 1 : position] == "=" and position > start):
            break
        position = skip_part(text, position)
    return max(position, start + 1)


def skip_part(text: str, position: int, depth: int = 0) -> int:
    """Return the end of the quoted text, substitution or single character at a position.

    Parameters
    ----------
    text : str
        The script.
    position : int
        Index of its first character.
    depth : int
        The substitutions that it is in; beyond 100, all text belongs to it. Default 0.

    Returns
    -------
    int
        Index after it.
    """
    sign, two = text[position], text[position : position + 2]
    end = position + 1
    if depth > MAX_DEPTH:
        end = len(text)
    elif sign == "\\":
        end = min(position + 2, len(text))
    elif two == "$'":
        end = _skip_escaped(text, position + 2)
    elif sign in "'`":
        end = _after(text, sign, position + 1)
    elif sign == '"' or two == '$"':
        end = skip_quoted(text, text.index('"', position) + 1, depth)
    elif sign == "(" or two == "$(":
        end = _skip_balanced(text, text.index("(", position), "()", depth)
    elif two == "${":
        end = _skip_balanced(text, position + 1, "{}", depth)
    return end


def _skip_escaped(text: str, position: int) -> int:
    """Return the position after the quote that closes `$'a text'`, in which a backslash can quote it."""
    while position < len(text) and text[position] != "'":
        position += 2 if text[position] == "\\" else 1
    return min(position + 1, len(text))


def skip_quoted(text: str, position: int, depth: int = 0) -> int:
    """Return the position after the double quote that closes a text.

    Parameters
    ----------
    text : str
        The script.
    position : int
        Index after the opening quote.
    depth : int
        The substitutions that it is in. Default 0.

    Returns
    -------
    int
        The length of the text if the quote is not closed.
    """
    while position < len(text):
        sign = text[position]
        if sign == '"':
            return position + 1
        literal = sign in "'(" or text[position : position + 2] in ("$'", '$"')
        position = position + 1 if literal else skip_part(text, position, depth + 1)
    return len(text)


def _after(text: str, end: str, position: int) -> int:
    found = text.find(end, position)
    return len(text) if found < 0 else found + 1


def _skip_balanced(text: str, position: int, brackets: str, depth: int) -> int:
    """Return the position after the bracket that closes the one at a position; quoted brackets do not count."""
    opened = 0
    while position < len(text):
        sign = text[position]
        if sign in brackets:
            opened += 1 if sign == brackets[0] else -1
            position += 1
            if opened == 0:
                return position
        elif sign in "\\'\"`":
            position = skip_part(text, position, depth + 1)
        elif sign == "#" and brackets == "()" and text[position - 1].isspace():
            position = _after(text, "\n", position) - 1 if "\n" in text[position:] else len(text)
        else:
            position += 1
    return len(text)


def statements(text: str) -> list[Statement]:
    """Return the simple commands of a script, in their order.

    Parameters
    ----------
    text : str
        The script; any text is accepted. An unclosed quote or bracket extends to the end.

    Returns
    -------
    list of Statement
        Without comments, redirections, here-documents and keywords.
    """
    return list(_Scanner(text).statements())


def find_unclosed(text: str) -> Unclosed | None:
    """Return the quote or bracket of a script that is not closed.

    Parameters
    ----------
    text : str
        The script.

    Returns
    -------
    Unclosed or None
        None if all are closed.
    """
    scanner = _Scanner(text)
    for _ in scanner.statements():
        pass
    return scanner.unclosed
