"""Split a shell script into simple commands and raw words. Nothing is expanded or run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from torchfab.core.lazy_dataclass import dataclass

_OPERATORS = ("&&", "||", ";;", "|&", ";", "|", "&", "(", ")")
_REDIRECTIONS = ("<<<", "<<-", "&>>", ">>", "<<", "&>", ">&", "<&", "<>", ">|", ">", "<")
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
    """

    number: int
    words: tuple[str, ...]
    piped: bool = False
    writes: str = ""


@dataclass
class _Scanner:
    text: str
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
                yield from self._end()
                self.position += 1
                self._skip_here_documents()
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

    def _end(self, operator: str = "") -> Iterator[Statement]:
        self.position += len(operator)
        words = list(self.words)
        while words and words[0] in _KEYWORDS:
            words.pop(0)
        if words:
            yield Statement(self.text.count("\n", 0, self.begin) + 1, tuple(words), self.piped, self.writes)
        self.words, self.piped, self.writes = [], operator in ("|", "|&"), ""

    def _word(self) -> None:
        start = self.position
        self.position = skip_word(self.text, start)
        word = self.text[start : self.position]
        if word.isdigit() and self.text[self.position : self.position + 1] in ("<", ">"):
            return  # the number of a file descriptor: 2>&1
        if not self.words:
            self.begin = start
        self.words.append(word.replace("\\\n", ""))

    def _redirection(self, operator: str) -> None:
        self.position += len(operator)
        while self.text[self.position : self.position + 1] in (" ", "\t"):
            self.position += 1
        start = self.position
        self.position = skip_word(self.text, start) if self.text[start : start + 1] not in ("", "\n") else start
        if operator in (">", ">>", "&>", "&>>", ">|"):
            self.writes = self.text[start : self.position]
        if operator in ("<<", "<<-"):
            self.here_documents.append(self.text[start : self.position].strip("'\"").replace("\\", ""))

    def _skip_here_documents(self) -> None:
        for delimiter in self.here_documents:
            while self.position < len(self.text):
                end = self._line_end()
                line = self.text[self.position : end]
                self.position = end + 1
                if line.strip("\t") == delimiter:
                    break
        self.here_documents = []

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


def skip_part(text: str, position: int) -> int:
    """Return the end of the quoted text, substitution or single character at a position.

    Parameters
    ----------
    text : str
        The script.
    position : int
        Index of its first character.

    Returns
    -------
    int
        Index after it.
    """
    sign, two = text[position], text[position : position + 2]
    if sign == "\\":
        return min(position + 2, len(text))
    if sign in "'`":
        return _after(text, sign, position + 1)
    if sign == '"':
        return skip_quoted(text, position + 1)
    if sign == "(" or two == "$(":
        return _skip_balanced(text, text.index("(", position), "(", ")")
    return _skip_balanced(text, position + 1, "{", "}") if two == "${" else position + 1


def skip_quoted(text: str, position: int) -> int:
    """Return the position after the double quote that closes a text.

    Parameters
    ----------
    text : str
        The script.
    position : int
        Index after the opening quote.

    Returns
    -------
    int
        The length of the text if the quote is not closed.
    """
    while position < len(text):
        sign = text[position]
        if sign == '"':
            return position + 1
        position = position + 1 if sign in "'(" else skip_part(text, position)
    return len(text)


def _after(text: str, end: str, position: int) -> int:
    found = text.find(end, position)
    return len(text) if found < 0 else found + 1


def _skip_balanced(text: str, position: int, opening: str, closing: str) -> int:
    """Return the position after the bracket that closes the one at a position; brackets in quotes do not count."""
    depth = 0
    while position < len(text):
        sign = text[position]
        if sign == opening:
            depth += 1
            position += 1
        elif sign == closing:
            depth -= 1
            position += 1
            if depth == 0:
                return position
        elif sign in "\\'\"`":
            position = skip_part(text, position)
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
