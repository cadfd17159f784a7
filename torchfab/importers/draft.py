"""Define the result of an import: a command line, and the parts of the file that it does not represent."""

from __future__ import annotations

import re
import shlex
from dataclasses import field

from torchfab.core.lazy_dataclass import dataclass

# Delimiters of a dynamic part within a word; `clean` removes them from the text of a file.
OPEN, CLOSE = "\ue000", "\ue001"
_DYNAMIC = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}")
_NAME = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")
_ARGUMENT = re.compile(r"\$(\{?[0-9#]\}?)")
_ARRAY = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\[.{1,20}\]\}")
PLACEHOLDER = "SCRIPT.py"
_FIRST = ("name", "nodes", "gpus-per-node", "nproc-per-node")  # the flags that are printed first


def clean(text: str) -> str:
    """Return a text without a byte order mark and without the characters that mark dynamic parts.

    Parameters
    ----------
    text : str
        The text of a file.

    Returns
    -------
    str
        With `\\n` at the ends of lines.
    """
    return text.removeprefix("\ufeff").replace(OPEN, "").replace(CLOSE, "").replace("\r\n", "\n")


def dynamic(source: str) -> str:
    """Mark a part of a word as dynamic: only a shell could compute it.

    Parameters
    ----------
    source : str
        The part, as it is in the file: `$(date)`.

    Returns
    -------
    str
    """
    return f"{OPEN}{source}{CLOSE}"


def is_dynamic(word: str) -> bool:
    """Return whether a word has a part that only a shell could compute.

    Parameters
    ----------
    word : str
        The word.

    Returns
    -------
    bool
    """
    return OPEN in word


def source_of(word: str) -> str:
    """Return a word as it is in the file.

    Parameters
    ----------
    word : str
        The word, in which dynamic parts may be marked.

    Returns
    -------
    str
    """
    return _DYNAMIC.sub(lambda match: match[1], word)


def dynamic_parts(word: str) -> list[str]:
    """Return the source texts of the dynamic parts of a word.

    Parameters
    ----------
    word : str
        The word.

    Returns
    -------
    list of str
        In the order of the word.
    """
    return _DYNAMIC.findall(word)


@dataclass(frozen=True)
class Skipped:
    """A part of the file that was not carried over: its line (0: the whole file), its text, and the reason."""

    number: int
    text: str
    reason: str


@dataclass
class Draft:
    """A command line that an importer builds.

    Attributes
    ----------
    title : str
        Description of the file, with an article.
    task : str
        The task of fab: `launch-per-node`.
    core : list of str
        Words before the task: `-H a,b`.
    flags : dict of str to list of str
        Values by flag; an empty text for a switch.
    env : dict of str to str
        Variables of the processes.
    script : tuple of str
        The arguments after `--`; empty if unknown.
    skipped : list of Skipped
        The parts that were not carried over.
    tasks_per_node : str
        Number of processes that the scheduler starts on a node; empty if the file does not set it.
    """

    title: str
    task: str = "launch-per-node"
    core: list[str] = field(default_factory=list)
    flags: dict[str, list[str]] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    script: tuple[str, ...] = ()
    skipped: list[Skipped] = field(default_factory=list)
    tasks_per_node: str = ""

    def set(self, flag: str, value: str = "") -> None:
        """Set a flag; a repeatable flag keeps its earlier values.

        Parameters
        ----------
        flag : str
            Its name, without dashes.
        value : str, default ""
            Its value; empty for a switch.
        """
        values = self.flags.setdefault(flag, [])
        if value not in values:
            values.append(value)

    def value(self, flag: str) -> str:
        """Return the first value of a flag.

        Parameters
        ----------
        flag : str
            Its name, without dashes.

        Returns
        -------
        str
            Empty if the flag is not set.
        """
        return self.flags.get(flag, [""])[0]

    def skip(self, number: int, text: str, reason: str) -> None:
        """Note something that is not carried over.

        Parameters
        ----------
        number : int
            Its line, from 1; 0 for the whole file.
        text : str
            Its text in the file.
        reason : str
            Why it is not carried over, or what to do instead.
        """
        entry = Skipped(number, " ".join(source_of(text).split()), reason)
        if entry not in self.skipped:
            self.skipped.append(entry)

    def words(self) -> tuple[str, ...]:
        """Return the command line as words, in which dynamic parts are marked."""
        names = sorted(self.flags, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
        flags = [f"--{name}={value}" if value else f"--{name}" for name in names for value in self.flags[name]]
        env = [f"--env={name}={value}" for name, value in self.env.items()]
        return ("fab", *self.core, self.task, *flags, *env, "--", *(self.script or (PLACEHOLDER,)))


def render(draft: Draft, name: str) -> str:
    """Render a draft as shell: comments, and one command.

    Parameters
    ----------
    draft : Draft
        The command line, and the notes.
    name : str
        Name of the imported file.

    Returns
    -------
    str
        Shell source.
    """
    comments = [f"# from {name}: {draft.title}"]
    if not draft.script:
        comments.append(f"# the file names no script: replace {PLACEHOLDER} by yours")
    comments += [f"# to fill in: {_shortened(text)}: {_advice(text)}" for text in _open_parts(draft)]
    if draft.skipped:
        comments.append("# not carried over:")
    for entry in sorted(draft.skipped, key=lambda each: each.number):
        place = f"{name}:{entry.number}" if entry.number else name
        comments += [f"#   {place}: {_shortened(entry.text)}", f"#       {_one_line(entry.reason)}"]
    return "\n".join([*comments, *_command_lines(draft)])


def _open_parts(draft: Draft) -> list[str]:
    return list(dict.fromkeys(part for word in draft.words() for part in dynamic_parts(word)))


def _advice(part: str) -> str:
    if _NAME.fullmatch(part):
        return "the file does not set it; set it before you run this"
    if _ARGUMENT.fullmatch(part):
        return "an argument of the script; write its value"
    if _ARRAY.fullmatch(part):
        return "the file does not set it; write its values"
    return "a shell expression, which is not evaluated; replace it by its result"


def _one_line(text: str) -> str:
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _shortened(text: str, length: int = 100) -> str:
    line = _one_line(text)
    return line if len(line) <= length else line[: length - 1] + "…"


def _command_lines(draft: Draft) -> list[str]:
    words = draft.words()
    start = words.index(draft.task) + 1
    end = words.index("--", start)
    lines = [" ".join(map(quote, words[:start]))]
    lines += [f"  {quote(word)}" for word in words[start:end]]
    lines.append("  " + " ".join(map(quote, words[end:])))
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def quote(word: str) -> str:
    """Return a word as shell source: unknown variables are kept, other dynamic parts become `<text>`.

    Parameters
    ----------
    word : str
        The word, in which dynamic parts may be marked.

    Returns
    -------
    str
    """
    pieces: list[str] = []
    position = 0
    for match in _DYNAMIC.finditer(word):
        pieces.append(_quoted(word[position : match.start()]))
        name = _NAME.fullmatch(match[1])
        pieces.append(f'"${{{name[1]}}}"' if name else shlex.quote(f"<{_one_line(match[1])}>"))
        position = match.end()
    pieces.append(_quoted(word[position:]))
    return "".join(pieces) or "''"


def _quoted(text: str) -> str:
    if not text:
        return ""
    if not text.replace("\n", "").replace("\t", "").isprintable():
        return "$'" + "".join(map(_escaped, text)) + "'"
    flag = re.match(r"(--[a-z-]+=(?:[A-Za-z_][A-Za-z0-9_]*=)?)(.*)", text, re.DOTALL)
    if flag:  # --env=NAME='two words' reads better than '--env=NAME=two words'
        return flag[1] + (shlex.quote(flag[2]) if flag[2] else "")
    if text.startswith("~/"):
        return "~/" + shlex.quote(text[2:])
    return shlex.quote(text)


def _escaped(sign: str) -> str:
    if sign in "\\'":
        return f"\\{sign}"
    return sign if sign.isprintable() else "".join(f"\\x{byte:02x}" for byte in sign.encode("utf-8", "surrogatepass"))
