"""Find the text that a launcher, a logger or a container runtime puts before each line of a traceback.

There is no list of known prefixes: the text before `Traceback (most recent call last):` is the prefix of the lines that
follow. Only its times may differ from line to line; ranks, pids and addresses may not, so that interleaved tracebacks
of several processes are kept apart.
"""

from __future__ import annotations

import re

from torchfab.core.lazy_dataclass import dataclass

_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_CLOCK = r"\d{1,2}:\d{2}:\d{2}(?:[.,]\d+)?"
# Times of day, dates, seconds with a fraction; not the parts of an address.
_TIME = re.compile(
    rf"\d{{4}}[-/.]\d{{2}}[-/.]\d{{2}}|(?<![\d.])\d{{1,2}}[-/](?:\d{{1,2}}|{_MONTH})[-/](?:\d{{4}}|\d{{2}})"
    rf"|(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? )?(?:{_MONTH} +\d{{1,2}}|\d{{1,2}} {_MONTH})(?: {_CLOCK})?(?: \d{{4}}\b)?"
    rf"|{_CLOCK}|(?<![\d.])\d{{2}}[-/]\d{{2}}(?![\d/-])|(?<![\d.])\d{{3,}}\.\d+(?![\d.])"
)
_VARIABLE = r"[\d:.,/-]+"
_NUMBER = re.compile(r"\s*\d[\d.,:]*")


@dataclass(frozen=True)
class Prefix:
    """The text before each line of one process.

    Parameters
    ----------
    text : str
        The text before the first line; empty if there is none.
    has_any_numbers : bool
        Whether all its numbers may differ from line to line, not only times.
    """

    text: str
    has_any_numbers: bool = False

    @property
    def is_blank(self) -> bool:
        """Whether it consists of blanks only: an indentation."""
        return not self.text.strip()

    def strip(self, line: str) -> str | None:
        """Return a line without the prefix.

        Parameters
        ----------
        line : str
            The line.

        Returns
        -------
        str or None
            None if the line does not have the prefix: another process wrote it.
        """
        if line.startswith(self.text):
            return line[len(self.text) :]
        if self.is_blank:
            return line.lstrip() if not line.strip() else None
        blanks = self.text[len(self.text.rstrip()) :]
        if blanks and self._pattern.fullmatch(
            line.rstrip() + blanks
        ):  # an empty line, whose trailing blanks were stripped
            return ""
        match = self._pattern.match(line)
        return line[match.end() :] if match else None

    @property
    def shape(self) -> str:
        """The text with placeholders for times: equal for all lines of one process."""
        return (_NUMBER if self.has_any_numbers else _TIME).sub("T", self.text).strip()

    def is_part_of(self, text: str) -> bool:
        """Return whether a longer text contains this prefix, apart from times, or all its words in order.

        Parameters
        ----------
        text : str
            The text before the head of a traceback.

        Returns
        -------
        bool
            True if the lines of both may come from one process.
        """
        words = re.findall(r"\w+", self.text)
        begins = [text.find(word) for word in words]
        return bool(self._pattern.search(text)) or (-1 not in begins and begins == sorted(begins))

    @property
    def with_any_numbers(self) -> Prefix:
        """A prefix that also matches other numbers: a count of lines, or of seconds."""
        return Prefix(self.text, has_any_numbers=True)

    @property
    def _pattern(self) -> re.Pattern[str]:
        return _compile(self.text, _NUMBER if self.has_any_numbers else _TIME)


_CACHE: dict[tuple[str, re.Pattern[str]], re.Pattern[str]] = {}


def _compile(text: str, variable: re.Pattern[str]) -> re.Pattern[str]:
    found = _CACHE.get((text, variable))
    if found is None:
        pieces, at = [], 0
        for match in variable.finditer(text):
            blank = r"\s*" if match[0].startswith(" ") else ""
            own = f"(?:{_TIME.pattern})" if variable is _TIME else _VARIABLE
            pieces += [re.escape(text[at : match.start()]), blank + own]
            at = match.end()
        pieces.append(re.escape(text[at:]))
        found = re.compile("".join(pieces))
        if len(_CACHE) > 1000:
            _CACHE.clear()
        _CACHE[text, variable] = found
    return found
