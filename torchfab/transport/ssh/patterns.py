"""Lists of patterns as OpenSSH matches them (ssh_config(5), PATTERNS): hosts, users, algorithms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache


def matches(patterns: Sequence[str], name: str) -> bool:
    """Return whether a list of patterns matches a name.

    Parameters
    ----------
    patterns : sequence of str
        Patterns with `*` and `?`; `!` before a pattern excludes the names that match it.
    name : str
        The name, in the same case as the patterns.

    Returns
    -------
    bool
        True if a pattern matches and none excludes the name.
    """
    if any(_compiled(each[1:]).fullmatch(name) for each in patterns if each.startswith("!")):
        return False
    return any(_compiled(each).fullmatch(name) for each in patterns if not each.startswith("!"))


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    wildcards = {"*": ".*", "?": "."}
    return re.compile("".join(wildcards.get(char) or re.escape(char) for char in pattern), re.DOTALL)
