"""Parse the directives of batch scripts: `#SBATCH --nodes=4`, `#BSUB -gpu num=4`, `#PBS -l select=2:ngpus=4`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace

from torchfab.core.flag_values import is_whole
from torchfab.core.lazy_dataclass import dataclass
from torchfab.importers.draft import Draft, dynamic

_SBATCH_SHORT = dict(
    zip(
        "NnpAqtJcCoeDwxGdaLbMi",
        (
            *("nodes", "ntasks", "partition", "account", "qos", "time", "job-name", "cpus-per-task", "constraint"),
            *("output", "error", "chdir", "nodelist", "exclude", "gpus", "dependency", "array", "licenses", "begin"),
            *("clusters", "input"),
        ),
        strict=True,
    )
)
# Options that sbatch takes in a shorter form, with the shortest one; and those that start another part of the job.
_SHORTEST = {"output": 3, "error": 3, "partition": 4, "account": 4, "constraint": 4, "job-name": 3}
_PARTS = ("hetjob", "packjob")
_SWITCHES = ("exclusive", "requeue", "no-requeue", "overcommit", "hold", "contiguous", "spread-job", "wait", "parsable")
_DIRECTIVE = re.compile(r"#(SBATCH|BSUB|PBS)\s+(.*)")
_SAME = ("partition", "account", "qos", "time", "constraint", "cpus-per-task", "job-name")
_OTHER_PART = "another part of the job: fab submits the first one"
_NO_VALUE = "it has no value: write one, or leave it out"
_LOGS = "fab keeps the logs of all ranks in the job's own folder: fab logs"
_REASONS: Mapping[str, str] = {
    **dict.fromkeys(("output", "error", "open-mode", "input"), _LOGS),
    **dict.fromkeys(_PARTS, _OTHER_PART),
    **dict.fromkeys(("array", "wrap", "parsable", "wait"), "fab submits one job that runs one script"),
    "export": "fab forwards NCCL_* and the like; others with --env NAME=VALUE",
    "get-user-env": "fab forwards NCCL_* and the like; others with --env NAME=VALUE",
    "requeue": "it is the default",
}


@dataclass(frozen=True)
class Directive:
    """A directive: its line, scheduler (`SBATCH`), option in its long form, value, and why it has no effect."""

    number: int
    scheduler: str
    option: str
    value: str = ""
    ignored: str = ""

    @property
    def text(self) -> str:
        """The directive as text, with the long form of its option."""
        dashes = "-" if len(self.option) == 1 else "--"
        return f"#{self.scheduler} {dashes}{self.option}" + (f" {self.value}" if self.value else "")


def read(text: str) -> list[Directive]:
    """Return the directives of a batch script.

    Parameters
    ----------
    text : str
        The script.

    Returns
    -------
    list of Directive
        In the order of the script; an unknown option is kept unchanged.
    """
    found: list[Directive] = []
    ignored = ""
    for number, line in enumerate(text.splitlines(), start=1):
        match = _DIRECTIVE.fullmatch(line.rstrip())
        if match and ignored and match[1] == "SBATCH":
            found += [replace(each, ignored=ignored) for each in _options(number, match[1], match[2])]
        elif match:
            found += _options(number, match[1], match[2])
        elif line.strip() and not line.lstrip().startswith("#"):
            ignored = ignored or "sbatch reads no directive after the first command"
        if any(each.option in _PARTS for each in found[-1:]):
            ignored = _OTHER_PART
    return found


def _options(number: int, scheduler: str, text: str) -> list[Directive]:
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        words = text.split()
    found: list[Directive] = []
    index = 0
    while index < len(words):
        name, equals, value = words[index].partition("=")
        index += 1
        if name.startswith("--"):
            name = name[2:]
        elif name.startswith("-") and scheduler == "SBATCH" and len(name) > 2:
            name, value, equals = name[1], words[index - 1][2:], "="
        else:
            name = name.lstrip("-")
        name = _sbatch_name(name) if scheduler == "SBATCH" else name
        if not equals and name not in _SWITCHES and index < len(words) and not words[index].startswith("-"):
            value = words[index]
            index += 1
        empty = (equals or value) and not value.strip("=") and name not in _SWITCHES
        found.append(Directive(number, scheduler, name, value, _NO_VALUE if empty else ""))
    return found


def _sbatch_name(name: str) -> str:
    """Return the full name of an option of sbatch."""
    name = {**_SBATCH_SHORT, "tasks-per-node": "ntasks-per-node"}.get(name, name)
    for full, length in _SHORTEST.items():
        if len(name) >= length and full.startswith(name):
            return full
    return name


def apply(directives: list[Directive], draft: Draft) -> None:
    """Convert directives to flags of fab; note those without a flag.

    Parameters
    ----------
    directives : list of Directive
        All of one scheduler.
    draft : Draft
        The draft; completed in place.
    """
    {"SBATCH": _apply_sbatch, "BSUB": _apply_bsub, "PBS": _apply_pbs}[directives[0].scheduler](directives, draft)


# ---- Slurm


def _apply_sbatch(directives: list[Directive], draft: Draft) -> None:
    draft.title, draft.task = "a batch script of Slurm", "launch-slurm"
    taken = [each for each in directives if not each.ignored]
    values = {each.option: each.value for each in taken}
    nodes = _sbatch_nodes(values)
    if nodes:
        draft.set("nodes", nodes)
    gpus = _sbatch_gpus(values, int(nodes) if is_whole(nodes) else 1)
    if gpus:
        draft.set("gpus-per-node", gpus)
    if {"ntasks", "ntasks-per-node"} & set(values):
        draft.tasks_per_node = str(_tasks_per_node(values, int(nodes) if is_whole(nodes) else 1))
    for each in directives:
        if each.ignored:
            draft.skip(each.number, each.text, each.ignored)
        else:
            _apply_sbatch_option(each, draft)


def _apply_sbatch_option(each: Directive, draft: Draft) -> None:
    name, value = each.option, each.value
    if name in ("nodes", "ntasks", "ntasks-per-node", "gres", "gpus", "gpus-per-node", "gpus-per-task"):
        _note_part(each, draft)
    elif name in _SAME and value:
        draft.set(name, value)
    elif name in ("exclusive", "no-requeue"):
        draft.set(name)
    elif name in _OTHERS:
        _OTHERS[name](each, draft)
    elif name in _REASONS:
        draft.skip(each.number, each.text, _REASONS[name])
    elif re.fullmatch(r"[a-z][a-z0-9-]+", name):
        draft.set("sbatch-arg", f"--{name}" + (f"={value}" if value else ""))
    else:
        draft.skip(each.number, each.text, "an unknown option of sbatch")


def _note_part(each: Directive, draft: Draft) -> None:
    """Note what of a resource request is not taken over."""
    if each.option == "gres" and not _gres_gpus(each.value):
        draft.skip(each.number, each.text, "fab asks for GPUs with --gpus-per-node, and for no other resources")
    if each.option == "nodes" and "-" in each.value:
        draft.skip(each.number, each.text, "fab submits with one number of nodes: the smallest one")


def _apply_chdir(each: Directive, draft: Draft) -> None:
    if each.value.startswith("/"):
        draft.set("workdir", each.value)
    else:
        draft.skip(each.number, each.text, "the directory in which fab is called is the default; --workdir is absolute")


def _apply_signal(each: Directive, draft: Draft) -> None:
    match = re.fullmatch(r"(?:[BR]:)?(?:SIG)?(\w+)@(\d{1,5})", each.value)
    if match and match[1] in ("USR1", "10"):
        draft.set("signal-grace", match[2])
    else:
        draft.skip(each.number, each.text, "fab sends SIGUSR1 before the time limit: --signal-grace SECONDS")


_OTHERS: Mapping[str, Callable[[Directive, Draft], None]] = {"chdir": _apply_chdir, "signal": _apply_signal}


def _sbatch_nodes(values: Mapping[str, str]) -> str:
    nodes = values.get("nodes", "").partition("-")[0]
    if nodes:
        return nodes
    tasks, per_node = values.get("ntasks", ""), values.get("ntasks-per-node", "")
    if is_whole(tasks) and is_whole(per_node) and int(per_node):
        return str(-(-int(tasks) // int(per_node)))
    return tasks if "gpus-per-task" in values and is_whole(tasks) else ""


def _sbatch_gpus(values: Mapping[str, str], nodes: int) -> str:
    """Return the GPUs per node, as N or TYPE:N; empty if none are requested."""
    if values.get("gpus-per-node"):
        return values["gpus-per-node"]
    if gres := _gres_gpus(values.get("gres", "")):
        return gres
    kind, number = _count(values.get("gpus-per-task", ""))
    if number:
        return kind + str(number * max(1, _tasks_per_node(values, nodes)))
    kind, number = _count(values.get("gpus", ""))
    return kind + str(max(1, number // max(1, nodes))) if number else ""


def _tasks_per_node(values: Mapping[str, str], nodes: int) -> int:
    per_node, tasks = values.get("ntasks-per-node", ""), values.get("ntasks", "")
    if is_whole(per_node):
        return int(per_node)
    return int(tasks) // max(1, nodes) if is_whole(tasks) else 1


def _count(text: str) -> tuple[str, int]:
    kind, colon, number = text.rpartition(":")
    return kind + colon, int(number) if is_whole(number) else 0


def _gres_gpus(text: str) -> str:
    match = re.search(r"(?:^|,)gpu(?::([A-Za-z][\w.-]*))?(?::(\d{1,4}))?(?:\(.*?\))?(?=,|$)", text)
    if not match:
        return ""
    return (f"{match[1]}:" if match[1] else "") + (match[2] or "1")


# ---- LSF and PBS: no launcher of their own; fab runs inside the job


def _apply_bsub(directives: list[Directive], draft: Draft) -> None:
    draft.title = "a batch script of LSF"
    _inside_the_job(draft, "$LSB_DJOB_HOSTFILE", "lsf")
    for each in directives:
        gpus = re.search(r"num=(\d{1,3})", each.value) if each.option == "gpu" else None
        if gpus:
            draft.set("nproc-per-node", gpus[1])
        elif each.option == "J" and re.fullmatch(r"[A-Za-z0-9][\w-]{0,62}", each.value):
            draft.set("name", each.value)
        else:
            draft.skip(each.number, each.text, _REASONS["output"] if each.option in "oe" else _STAYS)


def _apply_pbs(directives: list[Directive], draft: Draft) -> None:
    draft.title = "a batch script of PBS"
    _inside_the_job(draft, "$PBS_NODEFILE", "pbs")
    for each in directives:
        gpus = re.search(r"(?:ngpus|gpus)=(\d{1,3})", each.value) if each.option in ("l", "lselect") else None
        if gpus:
            draft.set("nproc-per-node", gpus[1])
        if each.option == "N" and re.fullmatch(r"[A-Za-z0-9][\w-]{0,62}", each.value):
            draft.set("name", each.value)
        else:
            draft.skip(each.number, each.text, _REASONS["output"] if each.option in "oejk" else _STAYS)


_STAYS = "a request to the scheduler: keep it in the batch script, and run fab inside the job"


def _inside_the_job(draft: Draft, hostfile: str, file_format: str) -> None:
    draft.set("hostfile", dynamic(hostfile))
    draft.set("hostfile-format", file_format)
