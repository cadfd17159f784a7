"""Flags as dataclasses: a task's command line is the fields of a frozen dataclass, each with its help and its type.

    @launch_task(per_node.Flags)
    def launch_per_node(c, flags, own): ...

Invoke reads a task's parameters from its signature, so the signature is built from the fields. Invoke itself gets text
only, which is converted when the task is called: Invoke's own conversion ends in a traceback for `--port x`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from types import FrameType
from typing import Any, ClassVar

import fabric
from invoke.exceptions import ParseError
from invoke.parser import Argument

from torchfab.core.flag_values import PORT, Seconds, WholeNumber, flag, parse, values_of
from torchfab.core.lazy_dataclass import dataclass

SECONDS = Seconds()
HOSTFILE_HELP = "File with one host a line, - for stdin, or slurm: the hosts of this allocation. [hosts]"
HOSTFILE_FORMAT_HELP = "torchfab, openmpi, mpich, pbs, lsf, sge, ansible, mlx, clustershell, etc-hosts. [detected]"
SETUP_HELP = "Shell commands for each node's environment, run once in its login shell: 'module load cuda'. [none]"


@dataclass(frozen=True)
class JobFlags:
    """The flags that every launch takes, whatever its runtime."""

    name: str = flag("", "Name of the job, unique on this machine. [the script's name and the time]")
    env: tuple[str, ...] = flag(
        (),
        "NAME=VALUE, or NAME to take the value from this machine, for every process; repeatable. Visible in ps here.",
    )
    dry_run: bool = flag(False, "Print what would run, as shell that works without torchfab; start nothing.")
    follow: bool = flag(False, "Show the logs until the job ends, and exit with its code; Ctrl-C leaves it running.")
    workdir: str = flag("", "Absolute path of the directory to run in, on every node. [the current one]")
    python: str = flag("", "Interpreter on the nodes. [that of the active environment here]")
    setup: str = flag("", SETUP_HELP)
    before: str = flag("", "Shell commands to run once on each node before the ranks; a failure stops the launch.")
    after: str = flag("", "Shell commands to run once on each node after its ranks, whether they failed or not.")
    grace: float | None = flag(None, "Seconds between SIGTERM and SIGKILL when the job is stopped. [10]", SECONDS)
    setting_of_setup: ClassVar[bool] = True  # without --setup, the setting `setup` counts


@dataclass(frozen=True)
class PodFlags(JobFlags):
    """The flags of every launch, with defaults for a container."""

    dry_run: bool = flag(False, "Print what would be created, for kubectl apply -f -; create nothing.")
    workdir: str = flag("/workspace", "Absolute path of the directory to run in, in the container. [/workspace]")
    python: str = flag("python", "Interpreter in the container. [python]")
    setup: str = flag("", "Shell commands for each container's environment, run once by its bash or sh. [none]")
    setting_of_setup: ClassVar[bool] = False  # the project's setting is about hosts, not about an image


@dataclass(frozen=True)
class LaunchFlags(JobFlags):
    """The flags of launches over a hosts file."""

    hostfile: str = flag("", HOSTFILE_HELP)
    hostfile_format: str = flag("", HOSTFILE_FORMAT_HELP)
    port: int = flag(0, "Port of the rendezvous on node 0; 0: a free one. [0]", PORT)
    master_addr: str = flag("", "Address by which the nodes reach node 0. [its name in the hosts file]")
    nodes: int = flag(
        0, "Run on the first N hosts; with --supervise, the hosts beyond are spares. [all]", WholeNumber(1)
    )
    supervise: bool = flag(False, "Restart the job after failures, lost nodes and hangs, on spare hosts if needed.")
    restarts: int | None = flag(
        None, "With --supervise: maximum number of restarts without progress. [3]", WholeNumber()
    )
    stall: float | None = flag(
        None,
        "With --supervise: seconds without a log line after which the job counts as hung; 0: never. [300]",
        SECONDS,
    )
    backoff: float | None = flag(
        None, "With --supervise: seconds before the first restart; doubles with each. [10]", SECONDS
    )
    notify: str = flag("", "With --supervise: command or URL that receives the job's events.")
    tmux: bool = flag(False, "With --supervise: supervise in this machine's private tmux server, and return.")
    no_probe: bool = flag(False, "Start the ranks without the probe that stacks and why ask for collectives.")


@dataclass(frozen=True)
class GpuLaunchFlags(LaunchFlags):
    """The flags of launches over a gpus file instead of a hosts file."""

    gpufile: str = flag("", "File with one line per process. [gpus]")


@dataclass(frozen=True)
class HostFlags:
    """The flags of commands that work on hosts, whether or not a job runs there."""

    hostfile: str = flag("", HOSTFILE_HELP)
    hostfile_format: str = flag("", HOSTFILE_FORMAT_HELP)
    json: bool = flag(False, "Print JSON.")


@dataclass(frozen=True)
class SyncFlags(HostFlags):
    """The flags of sync."""

    workdir: str = flag("", "Absolute path of the directory to copy to, on every node. [the current one]")
    delete: bool = flag(False, "Remove files on the nodes that do not exist here; ignored files stay.")
    dry_run: bool = flag(False, "Print the rsync commands; connect nowhere.")


@dataclass(frozen=True)
class RunFlags(HostFlags):
    """The flags of run."""

    workdir: str = flag("", "Absolute path of the directory to run in, on every node. [the current one]")
    python: str = flag("", "Interpreter whose folder comes first on PATH. [that of the active environment here]")
    setup: str = flag("", SETUP_HELP)
    env: tuple[str, ...] = flag((), "NAME=VALUE, or NAME to take the value from this machine; repeatable.")
    timeout: float = flag(0.0, "End the command after this many seconds; 0: never. [0]", SECONDS)


@dataclass(frozen=True)
class PushEnvFlags(HostFlags):
    """The flags of env push."""

    requirements: str = flag("", "Package list. [uv.lock of the project, else its requirements.txt]")
    path: str = flag(".venv", "Folder of the environment on every node, relative to the working directory. [.venv]")
    workdir: str = flag("", "Absolute path of the working directory, on every node. [the current one]")
    python: str = flag("python3", "Interpreter on the nodes that creates the environment. [python3]")
    timeout: float = flag(900.0, "Time limit for each node in seconds. [900]", SECONDS)


@dataclass(frozen=True)
class TrustFlags(HostFlags):
    """The flags of `fab trust`."""

    yes: bool = flag(False, "Write all new keys without asking; for scripts.")


@dataclass(frozen=True)
class DoctorFlags(HostFlags):
    """The flags of doctor: the values of the launch to check for."""

    workdir: str = flag("", "Absolute path of the directory a job would run in, on every node. [the current one]")
    python: str = flag("", "Interpreter on the nodes. [that of the active environment here]")
    setup: str = flag("", SETUP_HELP)
    port: int = flag(0, "Port of the rendezvous on node 0; 0: a free one. [0]", PORT)
    master_addr: str = flag("", "Address by which the nodes reach node 0. [its name in the hosts file]")


@dataclass(frozen=True)
class NetworkFlags(HostFlags):
    """The flags of network."""

    seconds: float = flag(20.0, "How long to measure. [20]", SECONDS)
    pairs: bool = flag(False, "Measure all pairs of nodes too. [only if the network is slow]")
    backend: str = flag("auto", "nccl, gloo, or auto: nccl where every node has a GPU. [auto]")
    env: tuple[str, ...] = flag((), "NAME=VALUE for every process, such as NCCL_SOCKET_IFNAME=eth1; repeatable.")
    workdir: str = flag("", "Absolute path of a directory on every node, for logs. [the current one]")
    python: str = flag("", "Interpreter on the nodes, with torch. [that of the active environment here]")
    master_addr: str = flag("", "Address by which the nodes reach node 0. [its name in the hosts file]")


Body = Callable[..., Any]
WORDS = "words"  # the argument of a WordsTask


def host_task(kind: type[HostFlags] = HostFlags) -> Callable[[Body], Any]:
    """Return a decorator that turns `body(c, flags)` into a task with the flags of a dataclass.

    Parameters
    ----------
    kind : type
        The dataclass. Default HostFlags.

    Returns
    -------
    callable
        The decorator.
    """

    def decorate(body: Body) -> Any:
        def call(c: Any, **values: Any) -> Any:
            return body(c, parse(kind, values))

        return _task(call, body, lambda: list(fields(kind)), FlagTask)

    return decorate


def command_task(kind: type[HostFlags]) -> Callable[[Body], Any]:
    """Return a decorator like `host_task`, for a task that takes a command after `--`.

    Parameters
    ----------
    kind : type
        The dataclass of the flags.

    Returns
    -------
    callable
        The decorator.
    """

    def decorate(body: Body) -> Any:
        def call(c: Any, **values: Any) -> Any:
            return body(c, parse(kind, values))

        return _task(call, body, lambda: list(fields(kind)), CommandTask)

    return decorate


def launch_task(own: Callable[[], type], shared: type = LaunchFlags) -> Callable[[Body], Any]:
    """Return a decorator that turns `body(c, flags, own)` into a task with the flags of both dataclasses.

    Parameters
    ----------
    own : callable
        Returns the dataclass of the launcher's own flags; called when the command line names the task.
    shared : type
        The flags that all launches share.

    Returns
    -------
    callable
        The decorator.
    """
    left_out = {"hostfile"} if shared is GpuLaunchFlags else set()

    def decorate(body: Body) -> Any:
        def call(c: Any, **values: Any) -> Any:
            return body(c, parse(shared, values), parse(own(), values))

        def flags() -> list[Field[Any]]:
            return [*(each for each in fields(shared) if each.name not in left_out), *fields(own())]

        return _task(call, body, flags, CommandTask)

    return decorate


def job_task(klass: type[JobTask] | None = None, **flags: Any) -> Callable[[Body], Any]:
    """Return a decorator that turns `body(c, job, **flags)` into a task; the job is optional.

    Parameters
    ----------
    klass : type, optional
        The class of the task. Default JobTask.
    **flags : field
        Its flags, as `flag(...)` returns them; one named `job` replaces the help of the job.

    Returns
    -------
    callable
        The decorator.
    """

    def decorate(body: Body) -> Any:
        parameters = {"job": flag("", "Name of the job. [the latest]"), **flags}

        def call(c: Any, **values: Any) -> Any:
            return body(c, **values_of(parameters, values))

        return _task(call, body, lambda: _named_all(parameters), klass or JobTask)

    return decorate


def file_task(name: str, **flags: Any) -> Callable[[Body], Any]:
    """Return a decorator that turns `body(c, file, **flags)` into a task whose name is a Python keyword.

    Parameters
    ----------
    name : str
        Name of the task: `import`.
    flags : field
        Its flags, as `flag(...)` returns them; one named `file` has the help of the file.

    Returns
    -------
    callable
        The decorator.
    """

    def decorate(body: Body) -> Any:
        def call(c: Any, **values: Any) -> Any:
            return body(c, **values_of(flags, values))

        return _task(call, body, lambda: _named_all(flags), FileTask, name)

    return decorate


def plain_task(**flags: Any) -> Callable[[Body], Any]:
    """Return a decorator that turns `body(c, **flags)` into a task without hosts or a job.

    Parameters
    ----------
    **flags : field
        Its flags, as `flag(...)` returns them.

    Returns
    -------
    callable
        The decorator.
    """

    def decorate(body: Body) -> Any:
        def call(c: Any, **values: Any) -> Any:
            return body(c, **values_of(flags, values))

        return _task(call, body, lambda: _named_all(flags), FlagTask)

    return decorate


def words_task(form: str, kind: type | None = None, **flags: Any) -> Callable[[Body], Any]:
    """Return a decorator that turns `body(c, words, **flags)` into a task that takes positional words.

    Parameters
    ----------
    form : str
        The words as the help shows them: `[job] PATH…`.
    kind : type, optional
        A dataclass with more flags. Default: none.
    **flags : field
        Its flags, as `flag(...)` returns them; one named `words` has the help of the words.

    Returns
    -------
    callable
        The decorator.
    """

    def known() -> dict[str, Any]:
        return {**flags, **({each.name: each for each in fields(kind)} if kind else {})}

    def decorate(body: Body) -> Any:
        def call(c: Any, **values: Any) -> Any:
            return body(c, **{**values_of(known(), values), "words": tuple(values["words"] or ())})

        made = _task(call, body, lambda: _named_all(known()), WordsTask)
        made.form = form
        return made

    return decorate


def _named_all(flags: Mapping[str, Any]) -> list[Field[Any]]:
    for name, each in flags.items():
        each.name = name
    return list(flags.values())


def _task(call: Body, body: Body, flags: Callable[[], list[Field[Any]]], klass: type, name: str | None = None) -> Any:
    call.__name__, call.__doc__, call.__module__ = body.__name__, body.__doc__, body.__module__
    made = fabric.task(klass=klass, name=name, positional=[], auto_shortflags=False)(call)
    made.flags = flags
    return made


def _placeholder(each: Field[Any]) -> str:
    kind = each.metadata.get("type")
    return "VALUE" if each.default == () else kind.placeholder if kind else ""


def _parameter(each: Field[Any]) -> inspect.Parameter:
    default = None if each.default == () else "" if each.metadata.get("type") else each.default
    return inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=default)


def _is_for_fab_itself(frame: FrameType) -> bool:
    """Return whether the parser's current token is a flag of `fab` itself, such as --help, and not a job."""
    parser, token = frame.f_locals.get("self"), frame.f_locals.get("token")
    return token in getattr(getattr(parser, "initial", None), "flags", ())


class FlagTask(fabric.tasks.Task):  # type: ignore[misc]  # fabric ships no types
    """A task that rejects empty values of flags, and whose result is the exit code of `fab`.

    Its flags are read when they are needed: a command line names one task of forty.

    Attributes
    ----------
    flags : callable
        Returns the fields of its flags.
    takes_command : bool
        Whether it takes a command after `--`.
    """

    flags: Callable[[], list[Field[Any]]]
    help: dict[str, str]
    takes_command = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task; exit with its code unless that is 0, so that no later task runs.

        Parameters
        ----------
        *args, **kwargs
            The context, and the values of the flags.

        Returns
        -------
        Any
            The exit code: 0 or None.

        Raises
        ------
        SystemExit
            The exit code is not 0.
        """
        code = super().__call__(*args, **kwargs)
        if code:
            raise SystemExit(code)
        return code

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """Return the task's arguments.

        Parameters
        ----------
        ignore_unknown_help : bool, optional
            Part of Invoke's interface.

        Returns
        -------
        list of Argument
            Those with a text reject the empty text.
        """
        flags = self.flags()
        self.help = {each.name: each.metadata["help"] for each in flags}  # Invoke empties it
        self.iterable = [each.name for each in flags if each.default == ()]
        arguments = super().get_arguments(ignore_unknown_help)
        return [NonEmptyValue.of(each) if each.kind is str else each for each in arguments]

    def argspec(self, body: Body) -> inspect.Signature:
        """Return the parameters of the task, from which Invoke makes its flags.

        Parameters
        ----------
        body : callable
            Part of Invoke's interface.

        Returns
        -------
        Signature
            A parameter for each flag.
        """
        return inspect.Signature([_parameter(each) for each in self.flags()])

    @property
    def placeholders(self) -> Mapping[str, str]:
        """What stands for the value in the help, by the name of a flag: `N`; empty: what Invoke writes."""
        return {each.name: _placeholder(each) for each in self.flags()}


class CommandTask(FlagTask):
    """A task that takes a command after `--`."""

    takes_command = True


class JobTask(FlagTask):
    """A task with one optional positional argument: the name of a job."""

    positionals: tuple[str, ...] = ("job",)

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """Return the task's arguments.

        Parameters
        ----------
        ignore_unknown_help : bool, optional
            Part of Invoke's interface.

        Returns
        -------
        list of Argument
            Those in `positionals` are positional and optional.
        """
        arguments = super().get_arguments(ignore_unknown_help)
        return [OptionalPositional.of(each) if each.name in self.positionals else each for each in arguments]


class SignalTask(JobTask):
    """A task with the positional arguments job (optional) and signal."""

    positionals = ("job", "signal")


class FileTask(FlagTask):
    """A task whose positional argument names a file."""

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """Return the task's arguments; `file` is positional.

        Parameters
        ----------
        ignore_unknown_help : bool, optional
            Part of Invoke's interface.

        Returns
        -------
        list of Argument
            The arguments.
        """
        arguments = super().get_arguments(ignore_unknown_help)
        return [OptionalPositional.of(each) if each.name == "file" else each for each in arguments]


class WordsTask(FlagTask):
    """A task that takes any number of positional words.

    Attributes
    ----------
    form : str
        The words as the help shows them.
    """

    form = ""

    @property
    def placeholders(self) -> Mapping[str, str]:
        """What stands for the value in the help, by the name of a flag."""
        return {**super().placeholders, WORDS: self.form}

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """Return the task's arguments; `words` is positional.

        Parameters
        ----------
        ignore_unknown_help : bool, optional
            Part of Invoke's interface.

        Returns
        -------
        list of Argument
            The arguments.
        """
        arguments = super().get_arguments(ignore_unknown_help)
        return [PositionalWords.of(each) if each.name == WORDS else each for each in arguments]


class NonEmptyValue(Argument):
    """A flag whose value must not be empty: `--name "$NAME"` with an unset NAME is a mistake."""

    @classmethod
    def of(cls, argument: Argument) -> NonEmptyValue:
        """Return an argument as one that rejects the empty text.

        Parameters
        ----------
        argument : Argument
            It takes one text.

        Returns
        -------
        NonEmptyValue
            With the same names, default and help.
        """
        return cls(names=argument.names, default=argument.default, help=argument.help, attr_name=argument.attr_name)

    def set_value(self, value: Any, cast: bool = True) -> None:
        """Set the value from the command line.

        Parameters
        ----------
        value : Any
            The text.
        cast : bool
            Convert it to the argument's kind. Default True.

        Raises
        ------
        ParseError
            The text is empty.
        """
        if value == "":
            raise ParseError(f"error: --{self.names[0]} is empty\n  fix: give it a value, or omit it")
        super().set_value(value, cast)


class OptionalPositional(Argument):
    """An optional positional argument, which Invoke lacks.

    Invoke's parser checks twice whether a positional argument still has no value (None): for each token that is not a
    flag, and again at the end, where it reports an error. `value` is None for the first check only.
    """

    @classmethod
    def of(cls, argument: Argument) -> OptionalPositional:
        """Return an argument as an optional positional one.

        Parameters
        ----------
        argument : Argument
            It takes one text.

        Returns
        -------
        OptionalPositional
            With the same names and help; its default is empty.
        """
        return cls(names=argument.names, default="", help=argument.help, positional=True)

    @property
    def value(self) -> Any:
        """The text: None while the parser searches an argument for its token, empty if there was no token."""
        if self._value is not None:
            return self._value
        return None if _parser_has_a_token() else self.default

    @value.setter
    def value(self, token: str) -> None:
        if token.startswith("-") and token != "-":
            raise ParseError(f"No idea what {token!r} is!")  # Invoke's text; parse_errors.py explains it
        if token == "":
            latest = "\n  fix: omit the name for the latest job" if self.name == "job" else ""
            raise ParseError(f"error: the name of the {self.name} is empty{latest}")
        self.set_value(token)


class PositionalWords(OptionalPositional):
    """A positional argument that takes all words after the task that are not flags."""

    @property
    def value(self) -> Any:
        """The words: None while the parser searches an argument for its token."""
        return None if _parser_has_a_token() else self._value or self.default

    @value.setter
    def value(self, token: str) -> None:
        if token.startswith("-") and token != "-":
            raise ParseError(f"No idea what {token!r} is!")  # Invoke's text; parse_errors.py explains it
        self.set_value(token)

    def set_value(self, value: Any, cast: bool = True) -> None:
        """Add a word.

        Parameters
        ----------
        value : Any
            The word.
        cast : bool
            Part of Invoke's interface.

        Raises
        ------
        ParseError
            The word is empty.
        """
        if value == "":
            raise ParseError("error: a word is empty\n  fix: give it a value, or omit it")
        self._value = [*(self._value or ()), value]


def _parser_has_a_token() -> bool:
    frame = sys._getframe(2)
    for _ in range(3):
        if frame.f_code.co_name in ("handle", "see_positional_arg"):
            return not _is_for_fab_itself(frame)
        if frame.f_code.co_name == "complete_context" or frame.f_back is None:
            return False
        frame = frame.f_back
    return False
