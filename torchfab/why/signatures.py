"""Match exceptions and log lines against the records of `signature_table`."""

from __future__ import annotations

from torchfab.why.causes import Cause
from torchfab.why.signature import Match
from torchfab.why.signature_table import SIGNATURES
from torchfab.why.speakers import Speaker


def find(text: str, speaker: Speaker | None = None) -> Match | None:
    """Return the first signature of the table that is in a text.

    Parameters
    ----------
    text : str
        An exception, or lines of a log.
    speaker : Speaker, optional
        The source of the exception. Default: determined for each line from its own text.

    Returns
    -------
    Match or None
        None if no pattern matches.
    """
    return next((match for each in SIGNATURES if (match := each.find(text, speaker))), None)


def recognise(text: str, speaker: Speaker | None = None) -> Cause | None:
    """Return the cause that a text indicates.

    Parameters
    ----------
    text : str
        An exception, or lines of a log.
    speaker : Speaker, optional
        The source of the exception. Default: determined for each line from its own text.

    Returns
    -------
    Cause or None
        None if no signature matches.
    """
    match = find(text, speaker)
    return match.cause if match else None
