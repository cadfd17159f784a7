"""Convert a shell or batch script that launches training to a command line. The script is read, never run."""

from __future__ import annotations

import posixpath
import re
from dataclasses import field, replace

from torchfab.core.errors import UsageError
from torchfab.core.flag_values import is_whole
from torchfab.core.lazy_dataclass import dataclass
from torchfab.importers import directives, launch_lines, variables
from torchfab.importers.draft import Draft, is_dynamic, source_of
from torchfab.importers.launch_lines import Launch
from torchfab.importers.options import SSH
from torchfab.importers.shell_scanner import Statement, find_unclosed, statements
from torchfab.importers.shell_words import Expander

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\+?=(.*)", re.DOTALL)
_EXPORTS = ("export", "declare", "typeset", "readonly", "local")
_IN_LOGIN_SHELL = "--setup 'THIS LINE' runs it on every node"
_PRINTS = ("echo", "printf", "date", "hostname", "env", "nvidia-smi", "cat", "ls", "pwd", "clear", "which")
_REASONS = {
    **dict.fromkeys(_PRINTS, "it only prints"),
    **dict.fromkeys(
        ("set", "shopt", "ulimit", "umask", "trap", "wait", "sleep", "exit", "true", ":"),
        "it affects only the script's own shell",
    ),
    **dict.fromkeys(
        ("case", "esac", "for", "select", "[", "[[", "test", "break", "continue", "return", "function"),
        "conditions, loops and functions are not evaluated",
    ),
    **dict.fromkeys(
        ("module", "ml", "spack"), f"{_IN_LOGIN_SHELL}, or --python gives an interpreter that does not need it"
    ),
    **dict.fromkeys(
        ("conda", "mamba", "micromamba"),
        f"{_IN_LOGIN_SHELL}, or give the environment's interpreter: --python /path/to/env/bin/python",
    ),
    **dict.fromkeys(("source", "."), f"{_IN_LOGIN_SHELL} and takes over what it exports; or --env NAME=VALUE"),
    "tee": "fab keeps the logs of all ranks: fab logs",
    "pip": "install it on the nodes before the launch",
    "cd": "the directory is not known: give its absolute path with --workdir",
    "ssh": "fab connects to the nodes itself",
    "pdsh": "fab connects to the nodes itself",
    "blaunch": "fab connects to the nodes itself",
    "tail": "it only prints",
}
_OTHER = "a shell command, which is not run: use --setup or --before, or run it before the launch"
_ANOTHER = "a second launch command: only the first one is converted"
_SCRIPT_READERS = frozenset(("bash", "sh", "ssh", "sbatch"))
_CONTINUED = re.compile(r"\\[ \t]+(?=\n)")
_FAN_OUT = ("pdsh", "clush", "pssh")
_SHELLS = ("bash", "sh", "eval", "ssh", *_FAN_OUT)
_MAX_DEPTH = 5
_SHOWN = 60  # characters of a command in a message


@dataclass
class _Assigned:
    """A variable that the script sets: its line, the text there, and the variables in its value."""

    number: int
    text: str
    uses: set[str]
    exported: bool = False


@dataclass
class _Reader:
    draft: Draft
    expander: Expander
    assigned: dict[str, _Assigned] = field(default_factory=dict)
    launch: Launch | None = None
    launched_at: Statement | None = None
    launched_with: set[str] = field(default_factory=set)
    later: list[tuple[Statement, str, str]] = field(default_factory=list)

    def read(self, text: str, first_line: int, depth: int) -> None:
        for each in statements(text):
            self._statement(replace(each, number=each.number + first_line - 1), depth)

    def _statement(self, each: Statement, depth: int) -> None:
        names = [_ASSIGNMENT.fullmatch(word) for word in each.words]
        if all(names):
            for match in names:
                self._assign(each, match, exported=False)
        elif each.words[0] in _EXPORTS:
            self._export(each)
        elif each.words[0] == "unset":
            for name in each.words[1:]:
                self.expander.variables.pop(name, None)
        else:
            self._command(each, depth)

    # ---- variables

    def _assign(self, each: Statement, match: re.Match[str] | None, exported: bool) -> None:
        if match is None:
            return
        before = set(self.expander.used)
        self.expander.used.clear()
        extends = match[0][len(match[1])] == "+"
        value = "" if match[2].startswith("(") else self.expander.value(match[2])
        if match[2].startswith("("):
            self.expander.set_array(match[1], match[2], extends)
        elif not extends:
            self.expander.arrays.pop(match[1], None)
        entry = _Assigned(each.number, match[0], set(self.expander.used), exported)
        self.expander.used |= before
        if extends or match[2].startswith("("):
            value = self.expander.variables.get(match[1], "") + value
        earlier = self.assigned.get(match[1])
        if earlier:
            entry.exported |= earlier.exported
            entry.uses |= earlier.uses
        self.assigned[match[1]] = entry
        self.expander.variables[match[1]] = value

    def _export(self, each: Statement) -> None:
        is_export = each.words[0] == "export" or "-x" in each.words
        for word in each.words[1:]:
            match = _ASSIGNMENT.fullmatch(word)
            if match:
                self._assign(each, match, exported=is_export)
            elif word in self.assigned and is_export:
                self.assigned[word].exported = True
            elif not word.startswith("-") and is_export:
                self.draft.skip(each.number, f"export {word}", "a variable of the terminal: --env NAME=VALUE")

    # ---- commands

    def _command(self, each: Statement, depth: int) -> None:
        self.expander.used.clear()
        words = [part for raw in each.words for part in self.expander.fields(raw)]
        used = set(self.expander.used)
        if not words:
            return
        if each.here and depth < _MAX_DEPTH and _SCRIPT_READERS & {posixpath.basename(word) for word in words}:
            self._here(each, words, depth)
            return
        inner = _inner_script(words)
        if inner is not None and depth < _MAX_DEPTH:
            self._inner(each, words, inner, used, depth)
            return
        launch = launch_lines.parse(words)
        if launch is not None and (self.launch is None or (self.launch.kind == "python" != launch.kind)):
            self._launch(each, launch, used)
        elif launch is not None:
            self._skip(each, _ANOTHER)
        elif not self._setup(each, words):
            self._skip(each, _reason(words, each.writes))

    def _launch(self, each: Statement, launch: Launch, used: set[str]) -> None:
        """Take a command that launches; a plain `python` before it, which prepares something, counts no longer."""
        if self.launched_at is not None:
            self._skip(self.launched_at, _ANOTHER)
            self.launched_with = set()
        self.launch, self.launched_at, self.launched_with = launch, each, self.launched_with | used
        for _, flag, value in self.later:
            self.draft.flags[flag] = [value]
        self.later = []

    def _here(self, each: Statement, words: list[str], depth: int) -> None:
        """Read the here-document of `bash`, `ssh HOST bash` or `sbatch` as a script."""
        for body in each.here:
            if "sbatch" in words and self.draft.task != "launch-slurm":
                found = [
                    replace(one, number=one.number + each.number, value=self.expander.value(one.value))
                    for one in directives.read(body)
                ]
                if found:
                    directives.apply(found, self.draft)
                    self.expander.variables.update(_slurm_variables(self.draft))
            self.read(body, each.number + 1, depth + 1)

    def _skip(self, each: Statement, reason: str) -> None:
        """Note a command as it stands in the file: expanded, it could show a secret."""
        self.draft.skip(each.number, " ".join(each.words), reason)

    def _inner(self, each: Statement, words: list[str], inner: str, used: set[str], depth: int) -> None:
        """Read the script of `bash -c SCRIPT`, and the command in front of it."""
        position = next(index for index, word in enumerate(words) if posixpath.basename(word) in _SHELLS)
        outer = launch_lines.parse([*words[:position], "python", "_.py"]) if position else None
        before = self.launch
        self.read(source_of(inner), each.number, depth + 1)
        if self.launch is None or self.launch is before:
            return
        self.launched_with |= used
        if posixpath.basename(words[0]) in ("ssh", *_FAN_OUT):
            self.draft.skip(
                each.number, " ".join(words[:-1]), "fab connects to the nodes itself: -H, or the hosts file"
            )
        for text, reason in outer.skipped if outer else ():
            self.draft.skip(each.number, text, reason)
        if outer:
            for name, value in outer.env.items():
                variables.carry(self.draft, each.number, name, value)
            self.launch.settings = {**outer.settings, **self.launch.settings}

    def _setup(self, each: Statement, words: list[str]) -> bool:
        """Convert a command that sets up the environment; return whether it was one."""
        name, value = words[0], words[1] if len(words) > 1 else ""
        if is_dynamic(value):
            return False
        folder = re.fullmatch(r"(/.*/bin)/activate", value)
        if name in ("cd", "pushd") and value.startswith("/"):
            found = ("workdir", value)
        elif name in ("source", ".") and folder:
            found = ("python", f"{folder[1]}/python")
        else:
            return False
        if self.launch is None:
            self.draft.flags[found[0]] = [found[1]]
        elif self.launch.kind == "python":
            self.later.append((each, *found))  # it counts if a command follows that launches
        else:
            return False
        return True

    # ---- the end

    def finish(self) -> None:
        """Take over the command; turn exported variables into --env, and note the ones that nothing uses."""
        for each, _, _ in self.later:
            self._skip(each, "it follows the command that launches")
        if self.launch is not None and self.launched_at is not None:
            self.launch.apply(self.draft, self.launched_at.number)
        needed = self._closure()
        for name, entry in self.assigned.items():
            if name in needed:
                self._note_default(name, entry)
            elif entry.exported:
                variables.carry(self.draft, entry.number, name, self.expander.variables.get(name, ""))
            else:
                text = variables.shown(name, entry.text)
                self.draft.skip(entry.number, text, "not exported, and not part of the command")

    def _closure(self) -> set[str]:
        """Return the variables that are part of the command, directly or within others."""
        needed, left = set[str](), list(self.launched_with)
        while left:
            name = left.pop()
            if name not in needed:
                needed.add(name)
                left += self.assigned[name].uses if name in self.assigned else ()
        return needed

    def _note_default(self, name: str, entry: _Assigned) -> None:
        if name in self.expander.defaults:
            text = variables.shown(name, entry.text)
            self.draft.skip(entry.number, text, "its default is used, not the value of this terminal")


def _inner_script(words: list[str]) -> str | None:
    """Return the script of `bash -c SCRIPT`, `eval SCRIPT` or `ssh HOST SCRIPT`, also below srun."""
    for index, word in enumerate(words[:-1]):
        name = posixpath.basename(word)
        if name in ("bash", "sh") and re.fullmatch(r"-[a-z]*c", words[index + 1]) and index + 2 < len(words):
            return words[index + 2]
        if name == "eval" and index == 0:
            return " ".join(words[1:])
    if posixpath.basename(words[0]) in _FAN_OUT and " " in words[-1]:
        return words[-1]
    if posixpath.basename(words[0]) == "ssh":
        _, rest = SSH.parse(words[1:])
        return " ".join(rest[1:]) or None
    return None


def _reason(words: list[str], writes: str) -> str:
    name = posixpath.basename(words[0])
    if writes and writes != "/dev/null" and name in ("cat", "echo", "printf"):
        return f"it writes {source_of(writes)}, which must be on the nodes before the launch"
    if name in ("source", ".") and len(words) > 1 and "conda" in words[1]:
        return _REASONS["conda"]
    return _REASONS.get(name, _OTHER)


def read(text: str) -> Draft:
    """Convert a script to a command line.

    Parameters
    ----------
    text : str
        The script, as `draft.clean` returns it.

    Returns
    -------
    Draft
        Its `script` is empty if no command of the script launches training.

    Raises
    ------
    UsageError
        A quote is not closed; the message begins with the line, `12: `.
    """
    draft = Draft("a shell script")
    _check_quotes(text, draft)
    for match in _CONTINUED.finditer(text):
        number = text.count("\n", 0, match.start()) + 1
        draft.skip(number, "blanks after the backslash", "read as a line that goes on; a shell would end it here")
    text = _CONTINUED.sub(r"\\", text)
    found = directives.read(text)
    if found and ("sbatch <<" not in text or not all(each.ignored for each in found)):
        directives.apply([each for each in found if each.scheduler == found[0].scheduler], draft)
    reader = _Reader(draft, Expander(_slurm_variables(draft)))
    reader.read(text, 1, 0)
    reader.finish()
    if reader.launch is not None:
        _choose_task(draft, reader.launch)
    return draft


def _check_quotes(text: str, draft: Draft) -> None:
    """Refuse a quote without its end, and note what may be complete in a real shell only.

    A here-document in a substitution may hold single quotes, which this scanner takes for quotes.
    """
    found = find_unclosed(text)
    if found is None:
        return
    begin = found.text.splitlines()[0].rstrip()
    begin = begin if len(begin) <= _SHOWN else f"{begin[: _SHOWN - 1]}…"
    if found.sign in "'\"" and "<<" not in found.text:
        raise UsageError(
            f"{found.number}: the quote of {begin} is not closed",
            "close it: a shell would take everything behind it for one word",
        )
    draft.skip(found.number, begin, "its end was not found: everything behind it was read as one word")


def _slurm_variables(draft: Draft) -> dict[str, str]:
    """Return the variables of Slurm whose values follow from the directives."""
    nodes, gpus = draft.value("nodes"), draft.value("gpus-per-node").rpartition(":")[2]
    known: dict[str, str] = {}
    if draft.task == "launch-slurm" and nodes:
        known |= dict.fromkeys(("SLURM_NNODES", "SLURM_JOB_NUM_NODES"), nodes)
    if gpus:
        known |= dict.fromkeys(("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"), gpus)
    return known


def _choose_task(draft: Draft, launch: Launch) -> None:
    """Choose the task of fab, and set its flags."""
    settings = dict(launch.settings)
    slurm = draft.task == "launch-slurm"
    if launch.kind in ("deepspeed", "mpirun") and not slurm:
        draft.task = f"launch-{launch.kind.removesuffix('run')}"
    if slurm and launch.kind == "deepspeed":
        settings = {name: settings[name] for name in settings if name in ("nodes", "nproc-per-node", "port", "python")}
        draft.skip(0, "deepspeed", "launch-slurm starts the ranks with torchrun, which sets the same variables")
    _set_hosts(draft, settings)
    _set_counts(draft, settings, by_srun=launch.kind == "srun")
    if launch.kind == "srun":
        draft.skip(
            0, "srun", "torchrun starts the ranks: RANK and LOCAL_RANK are set; SLURM_PROCID is the number of the node"
        )
    _note_unknown(draft, launch, settings)
    if slurm and "max-restarts" in settings:
        draft.skip(0, f"--max-restarts {settings.pop('max-restarts')}", "Slurm requeues a job whose node failed")
    for name, value in settings.items():
        draft.flags.setdefault(name, [value])


def _set_hosts(draft: Draft, settings: dict[str, str]) -> None:
    hosts = settings.pop("hosts", "")
    if hosts:
        pairs = [part.partition(":") for part in hosts.split(",")]
        draft.core += ["-H", ",".join(host for host, _, _ in pairs)]
        count = pairs[0][2]
        if is_whole(count) and all(each == count for _, _, each in pairs):
            settings.setdefault("nproc-per-node", count)
            settings.pop("np", None)
        settings.pop("hostfile", None)
    if draft.task == "launch-slurm":
        settings.pop("hostfile", None)


def _set_counts(draft: Draft, settings: dict[str, str], by_srun: bool) -> None:
    """Convert the numbers of nodes and ranks of other launchers to --nodes and --nproc-per-node."""
    nnodes = settings.pop("nnodes", "")
    if is_whole(nnodes):
        settings.setdefault("nodes", nnodes)
    elif nnodes and draft.task == "launch-per-node":
        settings["nnodes"] = nnodes
    nodes = draft.value("nodes") or settings.get("nodes", "")
    total = settings.pop("num-processes", "") or settings.pop("np", "")
    ranks = settings.pop("srun-ntasks-per-node", "") or draft.tasks_per_node
    settings.pop("srun-ntasks", None)
    if is_whole(total) and is_whole(nodes) and int(nodes):
        settings.setdefault("nproc-per-node", str(max(1, int(total) // int(nodes))))
    elif is_whole(total):
        draft.skip(
            0, f"{total} processes", "the number of nodes is not known: --nproc-per-node sets the ranks per node"
        )
    if by_srun and is_whole(ranks) and int(ranks) > 1:
        settings.setdefault("nproc-per-node", ranks)
    gpus = draft.value("gpus-per-node").rpartition(":")[2]
    if settings.get("nproc-per-node") in (gpus, "auto", "gpu") and (gpus or settings["nproc-per-node"] == "auto"):
        settings.pop("nproc-per-node", None)
    if draft.value("nodes"):
        settings.pop("nodes", None)


def _note_unknown(draft: Draft, launch: Launch, settings: dict[str, str]) -> None:
    """Note the options whose values are neither known nor set by the directives."""
    known = {"nodes": draft.value("nodes"), "nnodes": draft.value("nodes") or settings.get("nodes", "")}
    known["nproc-per-node"] = draft.value("gpus-per-node") or settings.get("nproc-per-node", "")
    for flag, option in launch.unknown.items():
        if not known.get(flag) and flag not in settings:
            draft.skip(0, option, "its value is not known without running the shell")


def other_commands(draft: Draft) -> str:
    """Describe the commands of a script that could not be converted, for a message.

    Parameters
    ----------
    draft : Draft
        The draft of the script.

    Returns
    -------
    str
        The last three of them; empty if there are none.
    """
    found = [each.text for each in draft.skipped if each.reason == _OTHER]
    shown = "; ".join(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…" for text in found[-3:])
    return f"; its commands: {shown}" if shown else ""
