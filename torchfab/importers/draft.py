"""The command line that an import makes, and what of the file it did not carry over."""

from __future__ import annotations

import re
import shlex
from dataclasses import field

from torchfab.core.lazy_dataclass import dataclass

# Stand around what only a shell could know, within a word; no text of a file contains them (see `clean`).
OPEN, CLOSE = "\ue000", "\ue001"
_DYNAMIC = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}")
_NAME = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")
_ARGUMENT = re.compile(r"\$(\{?[0-9#]\}?)")
_ARRAY = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\[.{1,20}\]\}")
PLACEHOLDER = "SCRIPT.py"
_FIRST = ("name", "nodes", "gpus-per-node", "nproc-per-node")  # what a reader looks for


def clean(text: str) -> str:
    """Return a text without the characters that stand around dynamic parts, and without a byte order mark."""
    return text.removeprefix("\ufeff").replace(OPEN, "").replace(CLOSE, "").replace("\r\n", "\n")


def dynamic(source: str) -> str:
    """Return the part of a word that only a shell could compute, from its source text."""
    return f"{OPEN}{source}{CLOSE}"


def is_dynamic(word: str) -> bool:
    """Say whether a word has a part that only a shell could compute."""
    return OPEN in word


def source_of(word: str) -> str:
    """Return a word as the file has it."""
    return _DYNAMIC.sub(lambda match: match[1], word)


def dynamic_parts(word: str) -> list[str]:
    """Return the source texts of the dynamic parts of a word."""
    return _DYNAMIC.findall(word)


@dataclass(frozen=True)
class Skipped:
    """Something that was not carried over: its line (0: the whole file), its text, and why or what to do instead."""

    number: int
    text: str
    reason: str


@dataclass
class Draft:
    """A command line in the making.

    Attributes
    ----------
    title : str
        What the file is, with its article.
    task : str
        The task of fab: `launch-per-node`.
    core : list of str
        Words before the task: `-H a,b`.
    flags : dict of str to list of str
        Values by flag; an empty text for a switch.
    env : dict of str to str
        Variables of the processes.
    script : tuple of str
        What stands after `--`; empty: not known.
    skipped : list of Skipped
        What was not carried over.
    tasks_per_node : str
        How many processes the scheduler starts on a node; empty where the file does not say it.
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
        """Set a flag; a flag that may be given again keeps its earlier values."""
        values = self.flags.setdefault(flag, [])
        if value not in values:
            values.append(value)

    def value(self, flag: str) -> str:
        """Return the value of a flag; empty where it is not set."""
        return self.flags.get(flag, [""])[0]

    def skip(self, number: int, text: str, reason: str) -> None:
        """Note something that is not carried over."""
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
        The command line, and what it did not carry over.
    name : str
        Name of the file that was imported.

    Returns
    -------
    str
    """
    comments = [f"# from {name}: {draft.title}"]
    if not draft.script:
        comments.append(f"# the file names no script: put yours in the place of {PLACEHOLDER}")
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
        return "the file does not say its value; set it before you run this"
    if _ARGUMENT.fullmatch(part):
        return "an argument of the script; write its value"
    if _ARRAY.fullmatch(part):
        return "the file does not say its values; write them"
    return "shell, which is not evaluated; write its result"


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
    """Return a word as shell: a variable that is not known stays one, other dynamic parts become `<text>`."""
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
    return sign if sign.isprintable() else "".join(f"\\x{byte:02x}" for byte in sign.encode())
