"""A signature: a pattern in an exception or in a log line, and the cause that it indicates."""

from __future__ import annotations

import enum
import re
from functools import cached_property

from torchfab.core.lazy_dataclass import dataclass
from torchfab.why.causes import Cause, Kind
from torchfab.why.speakers import Speaker, speaker_of_line

_AROUND_CHARS = 1000
# They report what happened to them, so the words of a lost rank mean something else when they speak.
_ELSEWHERE = (Speaker.CLIENT, Speaker.WORKER)


class Fact(enum.Enum):
    """What a node must report before a signature counts as the node's fault."""

    NONE = "nothing: only the hardware itself prints this"
    DISK = "a disk that is full"
    FILE_SYSTEM = "a kernel message about its disk or file server"
    NO_GPU = "no GPU, where other nodes have some"
    OTHERS_RAN = "the same program got further on other nodes"


@dataclass(frozen=True)
class Signature:
    """A pattern in an exception or in a log line, and the cause that it indicates.

    Parameters
    ----------
    kind, name : Kind, str
        Of the cause.
    words : str
        Plain words: a clause. `{line}` stands for the matching line and `{name}` for the group `name` of the pattern.
    fix : str
        How to fix it.
    patterns : tuple of str
        Regular expressions; one of them must match.
    example : str
        A text that matches, as it is printed.
    spoken_by : tuple of Speaker
        Who must say it; empty if its words are enough, whoever says them.
    is_symptom : bool
        Whether other ranks report this when one rank fails.
    confirm : Fact
        What the node must report for kind NODE; without it, the kind is SCRIPT.
    source, since : str
        Which programs print it, and since which version.
    """

    kind: Kind
    name: str
    words: str
    fix: str
    patterns: tuple[str, ...]
    example: str
    spoken_by: tuple[Speaker, ...] = ()
    is_symptom: bool = False
    confirm: Fact = Fact.NONE
    source: str = ""
    since: str = ""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """All patterns as one."""
        return re.compile("|".join(self.patterns), re.MULTILINE)

    @property
    def cause(self) -> Cause:
        """The cause, with the placeholders in its words."""
        return Cause(self.kind, self.name, self.words, self.fix, self.is_symptom)

    def find(self, text: str, speaker: Speaker | None = None) -> Match | None:
        """Return the last match in a text.

        Parameters
        ----------
        text : str
            An exception, or lines of a log.
        speaker : Speaker, optional
            Who raised the exception. Default: each line is judged by its own words.

        Returns
        -------
        Match or None
            None if nothing matches, or if another speaker says it.
        """
        matches = ((match, _line_around(text, match)) for match in reversed([*self.pattern.finditer(text)]))
        last = next((each for each in matches if self._is_said_by(speaker, each[1])), None)
        if last is None:
            return None
        line = " ".join(last[1].split())[:300]
        groups = {name: value or "?" for name, value in last[0].groupdict().items()}
        words = self.words.format(line=line, **groups)
        cause = Cause(self.kind, self.name, words, self.fix, self.is_symptom)
        return Match(self, cause, last[1].strip(), last[0].start())

    def _is_said_by(self, speaker: Speaker | None, line: str) -> bool:
        said_by = speaker_of_line(line) if speaker in (None, Speaker.SCRIPT) else speaker
        if self.spoken_by:
            return said_by in self.spoken_by or speaker in self.spoken_by
        return not (self.kind is Kind.NETWORK and self.is_symptom and said_by in _ELSEWHERE)


def _line_around(text: str, match: re.Match[str]) -> str:
    """Return the lines of a match, of long ones the surroundings of the match."""
    start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
    end = end if end >= 0 else len(text)
    return text[max(start, match.start() - _AROUND_CHARS) : min(end, match.end() + _AROUND_CHARS)]


@dataclass(frozen=True)
class Match:
    """A signature that was found.

    Parameters
    ----------
    signature : Signature
        The record.
    cause : Cause
        With its words filled in.
    line : str
        The line that matched.
    start : int
        Where it begins in the text that was searched.
    """

    signature: Signature
    cause: Cause
    line: str
    start: int
