"""Suggest corrections for words that are not host names: special characters, and notations of other tools."""

from __future__ import annotations

import re
import unicodedata

_QUOTES = "“”„‟‘’‚‛«»"  # typographic quotes that word processors insert
_COUNTED = re.compile(r"(?P<host>[A-Za-z0-9_.-]+)(?:\*|\((?:x)?|/)(?P<count>\d{1,4})\)?")
_CIDR = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3})/\d{1,2}")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(?:[^/@\s]+@)?([^/:\s]+).*", re.IGNORECASE)
_PER_NODE = re.compile(r"([A-Za-z0-9_.-]+):(?:ppn|np|ncpus|procs|mpiprocs|tasks)=(\d{1,4}).*")  # of PBS
_LETTERS = re.compile(r"([^\[\]]*)\[([A-Za-z])-([A-Za-z])\]([^\[\]]*)")


def invisible(text: str) -> str:
    """Return the first invisible character of a text.

    Parameters
    ----------
    text : str
        The text.

    Returns
    -------
    str
        `U+200B (ZERO WIDTH SPACE)`; empty if there is none.
    """
    found = next((char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs")), "")
    return f"U+{ord(found):04X} ({unicodedata.name(found, 'a control character')})" if found else ""


def fix_for(word: str) -> str:
    """Return the correction for a word that is not a valid host name.

    Parameters
    ----------
    word : str
        The word, or the part of it that should be a host.

    Returns
    -------
    str
        Empty if no specific correction is known.
    """
    return next((fix for hint in _HINTS if (fix := hint(word))), "")


def second_word(host: str, word: str) -> str:
    """Return the correction for a word after a host that is not a key.

    Parameters
    ----------
    host, word : str
        The first word of the line, and the one after it.

    Returns
    -------
    str
        Empty if no correction is known.
    """
    if counted := re.fullmatch(r"(?:[xX*]|\([xX]?)(\d{1,4})\)?", word):
        return f"a number of processes is written with its key: {host} slots={counted[1]}"
    if word == "\\":
        return "a line is not continued: write the keys of a host on its own line"
    if re.fullmatch(r"\d{1,5}[.)]?", host) and re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", word):
        return f"write the name alone, without a number in front: {word}"
    return ""


def _invisible(word: str) -> str:
    found = invisible(word)
    return f"it contains {found}, which is invisible: remove it, or type the line again" if found else ""


def _quotes(word: str) -> str:
    if any(char in _QUOTES for char in word):
        return "quotes are written as ' or \", and only around the value of a key"
    return f"write it without quotes: {word.strip(chr(34) + chr(39))}" if word[:1] in ('"', "'") else ""


def _comment(word: str) -> str:
    is_comment = word.startswith(("//", "/*", "-- ", "%", "<!--", "!"))
    return "a comment begins with #; this file has one host a line" if is_comment or word == "--" else ""


def _url(word: str) -> str:
    match = _URL.fullmatch(word)
    return f"it is a URL: write the host alone: {match[2]}" if match else ""


def _counted(word: str) -> str:
    if match := _CIDR.fullmatch(word):
        return f"it is a network: write its hosts as a range: {match[1].rpartition('.')[0]}.[1-4]"
    match = _COUNTED.fullmatch(word)
    return f"a number of processes is written with its key: {match['host']} slots={match['count']}" if match else ""


def _per_node(word: str) -> str:
    match = _PER_NODE.fullmatch(word)
    return f"a number of processes is written with its key: {match[1]} slots={match[2]}" if match else ""


def _path(word: str) -> str:
    if word.startswith(("/", "./", "../", "~")) or re.match(r"[A-Za-z]:\\", word):
        return "it is a path: this file names hosts; --hostfile names the file"
    return ""


def _pattern(word: str) -> str:
    if match := _LETTERS.fullmatch(word):
        return f"a range of letters is written as {match[1]}{{{match[2]}..{match[3]}}}{match[4]}"
    if word.count("[") != word.count("]") or word.count("{") != word.count("}"):
        return "a bracket is not closed: ranges are written as node[01-16]"
    return "patterns are not expanded: write a range, node[01-16], or each host" if set(word) & set("*?") else ""


def _shell(word: str) -> str:
    if set(word) & set("$`"):
        return "no shell reads this file: write the names themselves"
    return f"write one host per line, or a list: {','.join(word.split(';'))}" if ";" in word else ""


def _assignment(word: str) -> str:
    return "an assignment is not a host: write one host per line, or a list: node1,node2" if "=" in word else ""


def _list_item(word: str) -> str:
    if word in ("*", "•", "-", "+"):
        return "write the names alone, without a bullet in front"
    return "a host name does not begin with a dash" if word.startswith("-") else ""


def _unicode(word: str) -> str:
    if word.isascii():
        return ""
    try:
        return f"write its ASCII form: {word.encode('idna').decode()}"
    except UnicodeError:
        return "a host name has the letters a to z, digits, dots and dashes"


_HINTS = (
    _invisible,
    _per_node,
    _quotes,
    _comment,
    _url,
    _counted,
    _path,
    _list_item,
    _pattern,
    _shell,
    _assignment,
    _unicode,
)
