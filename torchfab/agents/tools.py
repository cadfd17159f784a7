"""The tools of `torchfab mcp`: their parameters, the command line of a call, and what of its output is returned. Pure.

Every value is passed as `--name=VALUE`, so that no text of a caller can be a flag.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torchfab.core.errors import UsageError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import NAME_PATTERN
from torchfab.launching.launcher_table import ALL

MAX_TEXT = 100_000  # characters of a result; the middle of a longer one is left out
LAUNCH, STOP = "launch", "stop"
ACTIONS = (LAUNCH, STOP)  # tools that change something: only with --allow
_MAX_LINES = 5000


@dataclass(frozen=True)
class Parameter:
    """A parameter of a tool.

    Parameters
    ----------
    name : str
        Its name; with `-` for `_` that of the flag.
    about : str
        One sentence for the caller.
    schema : Mapping
        Its JSON Schema: `type`, and bounds or choices.
    required : bool
        Whether a call needs it. Default False.
    """

    name: str
    about: str
    schema: Mapping[str, Any]
    required: bool = False


@dataclass(frozen=True)
class Tool:
    """A tool.

    Parameters
    ----------
    name, about : str
        Its name, and what it does, for the caller.
    parameters : tuple of Parameter
        Its parameters.
    command : tuple of str
        The task and the flags of every call.
    left_out : tuple of str
        Paths of values in the JSON document that are too long for most callers: `nodes.facts`. Those of a parameter
        with the last name stay if that is true.
    """

    name: str
    about: str
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether it changes anything on the hosts."""
        return self.name in ACTIONS

    @property
    def is_json(self) -> bool:
        """Whether its output is a JSON document."""
        return "--json" in self.command

    @property
    def input_schema(self) -> dict[str, Any]:
        """The JSON Schema of its arguments."""
        return {
            "type": "object",
            "properties": {each.name: {**each.schema, "description": each.about} for each in self.parameters},
            "required": [each.name for each in self.parameters if each.required],
            "additionalProperties": False,
        }


def _text(name: str, about: str, required: bool = False, **more: Any) -> Parameter:
    return Parameter(name, about, {"type": "string", **more}, required)


def _switch(name: str, about: str) -> Parameter:
    return Parameter(name, about, {"type": "boolean"})


def _number(name: str, about: str, low: float, high: float) -> Parameter:
    return Parameter(name, about, {"type": "number", "minimum": low, "maximum": high})


_NAME = f"^{NAME_PATTERN.pattern}$"
_JOB = _text("job", "Name of the job. Default: the latest one.", pattern=_NAME)
_TEXT_OR_NUMBER = {"type": ["string", "integer"]}
_RANKS = Parameter("rank", "Only these ranks: 0,2-5.", _TEXT_OR_NUMBER)
_ATTEMPT = Parameter("attempt", "Attempt of a restarted job, from 1. Default: the current one.", _TEXT_OR_NUMBER)
_HOSTS = _text("hosts", "Hosts, separated by commas, instead of the project's hosts file.")
_WORDS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_VARIABLES = {"type": "object", "additionalProperties": {"type": "string"}}

TOOLS = (
    Tool("jobs", "List the jobs that were launched from here, with state and exit code.", (), ("jobs", "--json")),
    Tool(
        "status",
        "The status of a job: state of every node, process and rank, its last log line, and whether it may hang.",
        (_JOB,),
        ("status", "--json"),
    ),
    Tool(
        "logs",
        "The last log lines of all ranks, merged, each with its host and rank.",
        (
            _JOB,
            _RANKS,
            Parameter(
                "lines",
                "The last so many lines of each file. Default 200.",
                {"type": "integer", "minimum": 1, "maximum": _MAX_LINES},
            ),
            _text("grep", "Only lines that match this regular expression."),
            _ATTEMPT,
        ),
        ("logs",),
    ),
    Tool(
        "why",
        "Why a job ended: the first failure with its host, rank and traceback, the cause with a fix, how sure that is "
        "and on which lines it rests. For a running job: what the ranks wait for.",
        (_JOB, _ATTEMPT),
        ("why", "--json"),
    ),
    Tool(
        "stacks",
        "What every rank of a running job is doing: equal Python stacks grouped, and collectives that wait.",
        (_JOB, _RANKS, _switch("ranks", "Also all threads of each rank, which may be long.")),
        ("stacks", "--json"),
        ("ranks",),
    ),
    Tool(
        "profile",
        "Profile the ranks of a running job for some seconds: shares of compute, communication, data and idle, and the "
        "rank that comes last. Writes a trace file into the project's folder.",
        (_JOB, _RANKS, _number("seconds", "How long. Default 3.", 0.1, 60)),
        ("profile", "--json"),
    ),
    Tool(
        "doctor",
        "Find problems of the hosts and between them (SSH, clocks, disks, GPUs, drivers, torch), with a fix for each.",
        (_HOSTS, _switch("facts", "Also all that each host reported, which may be long.")),
        ("doctor", "--json"),
        ("nodes.facts",),
    ),
    Tool(
        "top",
        "The load of the hosts now: CPUs, memory, GPUs with power and memory, and the job's step rate.",
        (_JOB, _HOSTS),
        ("top", "--once", "--json"),
    ),
    Tool(
        LAUNCH,
        "Launch a script on the hosts. This runs any command there, with the user's rights.",
        (
            Parameter("command", "The script and its arguments: [\"train.py\", \"--lr\", \"3e-4\"].", _WORDS, True),
            _text("launcher", "How it is launched. Default per-node: torchrun on every host.", enum=[*ALL]),
            _text("name", "Name of the job. Default: one made of the script and the time.", pattern=_NAME),
            _HOSTS,
            _text("workdir", "Absolute path of the working directory on the nodes. Default: the current one."),
            Parameter("nproc_per_node", "With per-node: ranks on each host: auto, gpu, or a number.", _TEXT_OR_NUMBER),
            Parameter("env", "Variables for every rank: {\"NCCL_DEBUG\": \"INFO\"}.", _VARIABLES),
            _switch("dry_run", "Only print what would run."),
        ),
        ("launch-per-node",),
    ),
    Tool(
        STOP,
        "Stop a job on all its nodes, and verify that no process of it is left.",
        (
            _text("job", "Name of the job.", required=True, pattern=_NAME),
            _number("grace", "Seconds between SIGTERM and SIGKILL. Default: as launched, 10.", 0, 3600),
        ),
        ("stop",),
    ),
)  # fmt: skip


def allowed(text: str) -> tuple[str, ...]:
    """Read the value of `--allow`.

    Parameters
    ----------
    text : str
        Names, separated by commas; empty: none.

    Returns
    -------
    tuple of str
        Names of `ACTIONS`.

    Raises
    ------
    UsageError
        A name is none of them.
    """
    names = [each.strip() for each in text.split(",")] if text else []
    if wrong := [each for each in names if each not in ACTIONS]:
        raise UsageError(f"--allow is launch, stop or launch,stop, got {wrong[0]!r}", "all other tools only read")
    return tuple(dict.fromkeys(names))


def find(name: str, actions: Iterable[str]) -> Tool:
    """Return a tool by its name.

    Parameters
    ----------
    name : str
        The name.
    actions : iterable of str
        The allowed ones of `ACTIONS`.

    Returns
    -------
    Tool
        The tool.

    Raises
    ------
    UsageError
        There is no such tool, or it is not allowed.
    """
    tool = next((each for each in TOOLS if each.name == name), None)
    if tool is None:
        raise UsageError(f"there is no tool {name!r}", f"tools: {', '.join(each.name for each in TOOLS)}")
    if tool.changes and name not in actions:
        raise UsageError(f"the tool {name} is not allowed", f"the user may allow it: torchfab mcp --allow {name}")
    return tool


# ---- a call


def command_line(tool: Tool, arguments: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words of a call.

    Parameters
    ----------
    tool : Tool
        The tool.
    arguments : Mapping
        What the caller gave; it is checked.

    Returns
    -------
    tuple of (tuple of str, tuple of str)
        Flags before the task, and the task with its flags and the command after `--`.

    Raises
    ------
    UsageError
        An argument is not one of the tool's, is missing, or has a wrong type or value.
    """
    check(tool, arguments)
    given = {name: value for name, value in arguments.items() if value not in (None, "", {})}
    task, *more = tool.command
    if tool.name == LAUNCH:
        task = f"launch-{given.pop('launcher', 'per-node')}"
    if tool.name == "logs":
        given.setdefault("lines", 200)
    core = (f"--hosts={given.pop('hosts')}",) if "hosts" in given else ()
    command = given.pop("command", None)
    kept = {path.rpartition(".")[2] for path in tool.left_out}  # these select values of the output
    flags = [word for name, value in given.items() if name not in kept for word in _flag(name, value)]
    return core, (task, *more, *flags, *(("--", *command) if command else ()))


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else []
    if isinstance(value, Mapping):
        return [f"{flag}={key}={text}" for key, text in value.items()]
    return [f"{flag}={value:g}" if isinstance(value, float) else f"{flag}={value}"]


def check(tool: Tool, arguments: Mapping[str, Any]) -> None:
    """Check the arguments of a call.

    Parameters
    ----------
    tool : Tool
        The tool.
    arguments : Mapping
        By name.

    Raises
    ------
    UsageError
        An argument is not one of the tool's, is missing, or has a wrong type or value.
    """
    known = {each.name: each for each in tool.parameters}
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            fix = f"did you mean {near[0]}?" if near else f"arguments of {tool.name}: {', '.join(known) or 'none'}"
            raise UsageError(f"{tool.name} has no argument {name!r}", fix)
    for each in tool.parameters:
        value = arguments.get(each.name)
        if value is None:
            if each.required:
                raise UsageError(f"{tool.name} needs the argument {each.name}", each.about)
        elif problem := _problem(each.schema, value):
            raise UsageError(f"{tool.name}: {each.name} {problem}, got {_shown(value)}", each.about)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 200 else f"{text[:200]}…"


_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}


def _problem(schema: Mapping[str, Any], value: Any) -> str:
    """Return what is wrong with a value, as the text after its name; empty if nothing is."""
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not any(_is_a(kind, value) for kind in kinds):
        return f"is of type {' or '.join(kinds)}"
    if "pattern" in schema and not NAME_PATTERN.fullmatch(value):
        return "has letters, digits, - and _ only, at most 63, a letter or digit first"
    if "minimum" in schema and not schema["minimum"] <= value <= schema["maximum"]:
        return f"is from {schema['minimum']} to {schema['maximum']}"
    if value not in schema.get("enum", (value,)):
        return f"is one of {', '.join(schema['enum'])}"
    texts = list(_texts(value))
    if isinstance(value, list | dict) and (value == [] or not all(isinstance(each, str) for each in texts)):
        return "holds texts, at least one" if isinstance(value, list) else "has a text for each name"
    return "must not hold a NUL character" if any("\0" in str(each) for each in texts) else ""


def _is_a(kind: str, value: Any) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _texts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from (each for pair in value.items() for each in pair)
    elif isinstance(value, list):
        yield from value
    else:
        yield value


# ---- its result


def reduced(tool: Tool, document: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a call without what is too long for most callers.

    Parameters
    ----------
    tool : Tool
        The tool.
    document : JSON value
        As the command printed it.
    arguments : Mapping
        Those of the call.

    Returns
    -------
    dict
        A list is under the name of the tool.
    """
    found: dict[str, Any] = document if isinstance(document, dict) else {tool.name: document}
    for path in tool.left_out:
        if not arguments.get(path.rpartition(".")[2]):
            found = _without(found, path.split("."))
    return found


def _without(value: Any, path: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_without(each, path) for each in value]
    name, *rest = path
    if not rest:
        return {key: each for key, each in value.items() if key != name}
    return {key: _without(each, rest) if key == name else each for key, each in value.items()}


def shortened(text: str, limit: int = MAX_TEXT) -> str:
    """Return a text without its middle if it is too long.

    Parameters
    ----------
    text : str
        The text.
    limit : int
        Characters that are kept. Default `MAX_TEXT`.

    Returns
    -------
    str
        With a line that tells how much is left out.
    """
    if len(text) <= limit:
        return text
    head, tail = text[: limit // 4], text[-(limit - limit // 4) :]
    return f"{head}\n… {len(text) - limit} characters left out: ask for fewer lines or ranks …\n{tail}"
