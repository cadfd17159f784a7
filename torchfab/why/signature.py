"""A signature: a pattern in an exception or in a log line, and the cause that it indicates."""

from __future__ import annotations

import enum
import re
from functools import cached_property

from torchfab.core.lazy_dataclass import dataclass
from torchfab.why.causes import Cause, Kind
from torchfab.why.speakers import Speaker, speaker_of_line

_AROUND_CHARS = 1000
# These sources report their own connections, so their messages about a lost peer do not mean a lost rank.
_ELSEWHERE = (Speaker.CLIENT, Speaker.WORKER)


class Fact(enum.Enum):
    """The fact that a node must report before a signature is attributed to the node."""

    NONE = "nothing: only the hardware itself prints this"
    DISK = "a disk that is full"
    FILE_SYSTEM = "a kernel message about its disk or file server"
    NO_GPU = "no GPU, where other nodes have some"
    OTHERS_RAN = "the same program got further on other nodes"
    ONLY_THERE = "every rank of the node reports it, and none of another node"


@dataclass(frozen=True)
class Signature:
    """A pattern in an exception or in a log line, and the cause that it indicates.

    Parameters
    ----------
    kind, name : Kind, str
        Of the cause.
    words : str
        Description: a clause. `{line}` is replaced by the matching line, `{name}` by the group `name` of the pattern.
    fix : str
        How to fix it.
    patterns : tuple of str
        Regular expressions; one of them must match.
    example : str
        A printed text that matches.
    spoken_by : tuple of Speaker
        The required sources of the message; empty for any source.
    is_symptom : bool
        Whether other ranks report this when one rank fails.
    confirm : Fact
        The fact that the node must report for kind NODE; without it, the kind is SCRIPT.
    source, since : str
        The programs that print it, and their first version that does.
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
            The source of the exception. Default: determined for each line from its own text.

        Returns
        -------
        Match or None
            None if nothing matches, or if the message has another source.
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
    """Return the lines of a match; of long lines, the text around the match."""
    start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
    end = end if end >= 0 else len(text)
    return text[max(start, match.start() - _AROUND_CHARS) : min(end, match.end() + _AROUND_CHARS)]


@dataclass(frozen=True)
class Match:
    """A signature that matched.

    Parameters
    ----------
    signature : Signature
        The record.
    cause : Cause
        With its description filled in.
    line : str
        The line that matched.
    start : int
        Offset of the match in the searched text.
    """

    signature: Signature
    cause: Cause
    line: str
    start: int
