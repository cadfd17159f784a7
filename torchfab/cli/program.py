"""Fabric's program, with one-line errors and exit code 2 in place of "No idea what …" or a traceback.

`fab` starts Fabric's program, which loads fabfile.py, which calls `adopt`: from then on the running program is ours.
Errors before that point (`fab -t abc`, `fab --version`, no fabfile) need a program that is ours from its start:
`main`, which is the `fab` that `./run` writes. `torchfab` has torchfab's own tasks in every folder: TorchfabProgram.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import fabric
import invoke
from fabric.main import Fab
from invoke import Collection
from invoke.exceptions import CollectionNotFound, Exit, ParseError
from invoke.loader import FilesystemLoader
from invoke.parser import Parser, ParserContext

import torchfab
from torchfab.cli import excepthook, parse_errors, project_settings
from torchfab.cli.executor import Executor, args_after_dashes
from torchfab.cli.flags import WORDS
from torchfab.config import defaults, project
from torchfab.core import program_name
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.program_name import ProgramName

_FLAGS = {
    "-H": "Comma-separated hosts, instead of the hosts file.",
    "-S": "An ssh config file, instead of the user's and the system's.",
    "-i": "A private key to log in with; repeatable.",
    "-t": "Seconds for each step of a connection. [10]",
    "-r": "Folder of the project. [the nearest one with torchfab.yaml, from the current folder upwards]",
    "-f": "A file with more settings, in a section torchfab.",
    "-d": "Print each step of each connection on stderr.",
    "-l": "List the tasks.",
    "-h": "Print this help, or the flags of a task.",
    "-V": "Print the versions.",
    "--prompt-for-login-password": "Ask for the password to log in with.",
    "--prompt-for-passphrase": "Ask for the passphrase of the private key.",
    "--print-completion-script": "Print the completion script for bash, zsh or fish.",
}
_INTRODUCTION = """\
Usage: torchfab [flags] TASK [flags of the task] [-- SCRIPT ARGUMENTS…]

    torchfab init                                  make this folder a project
    torchfab launch-per-node --follow -- train.py  launch on all `hosts`
    torchfab --help TASK                           explain the flags of a task
"""
_LIST_FORMATS = ("flat", "nested", "json")


class Program(Fab):  # type: ignore[misc]  # fabric ships no types
    """Fabric's program; each step ends with one line and exit code 2 if the command line is wrong."""

    _start: Path | None = None

    def print_version(self) -> None:
        """Print torchfab's version first, then those of Fabric, Paramiko and Invoke."""
        print(f"torchfab {torchfab.__version__}")
        super().print_version()

    def parse_core(self, argv: list[str] | None = None) -> None:
        """Parse the flags before the first task."""
        with self._one_line():
            shell = _completion_shell(_before_dashes(sys.argv if argv is None else argv))
            if shell is not None:
                from torchfab.cli import completion

                print(completion.script(shell, _called_as()), end="")
                raise Exit
            super().parse_core(argv)
            if not self.args["write-pyc"].value:
                keep_compiled_modules()

    def parse_collection(self) -> None:
        """Load the fabfile and its settings."""
        with self._one_line():
            if self._remainder_only and not self.args.hosts.value:
                line = f"{program_name.called().name} launch-per-node -- {self.core.remainder}"
                raise UsageError(f"there is no task before --: {line}")
            self._start = self._start_folder()
            self._find_tasks()
            try:
                super().parse_collection()
            except Exit as error:
                if not isinstance(error.__context__, CollectionNotFound):
                    raise
                name, start = error.__context__.name, self.args["search-root"].value or "."
                raise UsageError(f"there is no {name}.py in {os.path.abspath(start)} or above it") from None
            except (TypeError, AttributeError):  # Invoke reads settings while it loads them
                project_settings.check_file(self.config, "project")
                raise

    def parse_tasks(self) -> None:
        """Parse the tasks and their flags."""
        with self._one_line():
            self._check_words()
            super().parse_tasks()

    def parse_cleanup(self) -> None:
        """Print help and lists."""
        with self._one_line():
            if self.args.complete.value:
                self._print_candidates()
                raise Exit
            self._check_help()
            super().parse_cleanup()

    def update_config(self, merge: bool = True) -> None:
        """Load the settings files that the command line names."""
        with self._one_line():
            config = self.config
            self._load_project()
            _check_settings_file(self.args.config.value)
            config.set_runtime_path(self.args.config.value or os.environ.get("INVOKE_RUNTIME_CONFIG"))
            config.load_runtime(merge=False)
            for kind in ("system", "user", "project", "runtime"):
                project_settings.check_file(config, kind)
            project_settings.add_defaults(config)
            super().update_config()

    def execute(self) -> None:
        """Run the tasks."""
        with self._one_line():
            check_executor(self.config.tasks.executor_class)
        super().execute()

    def _update_core_context(self, context: Any, new_args: Any) -> None:
        """Apply flags of `fab` given after a task; repeatable ones add up, others given twice are errors."""
        for key, given in new_args.items():
            core = context.args[key]
            if given.got_value and core.got_value and core.takes_value:
                if core.kind is not list:
                    raise UsageError(f"{parse_errors.spelling(core)} is given twice; it takes one value")
                given._value = [*core._value, *given._value]
        super()._update_core_context(context, new_args)

    def _start_folder(self) -> Path:
        return Path(self.args["search-root"].value or self.config.tasks.search_root or ".").expanduser().absolute()

    def _load_project(self) -> None:
        """Find the project's folder, and read its settings: fabric.yaml, then torchfab.yaml."""
        config, start = self.config, self._start or self._start_folder()
        beside_tasks = config._project_prefix  # the fabfile's folder; None for TorchfabProgram
        folder = project.find(start) or Path(beside_tasks or start)
        if beside_tasks is None or Path(beside_tasks) != folder:
            config.set_project_location(str(folder))
            config.load_project(merge=False)
        project_settings.check_file(config, "project")
        project_settings.add_project_file(config, folder)

    def _find_tasks(self) -> None:
        """Fall back to this clone's tasks if the current folder belongs to no project."""
        given = self.args["search-root"].value or self.args.collection.value
        clone = Path(torchfab.__file__).resolve().parents[1]
        if given or not (clone / "fabfile.py").is_file():
            return
        try:
            self.loader_class(config=self.config).find("fabfile")
        except CollectionNotFound:
            self.args["search-root"].value = str(clone)

    def _check_words(self) -> None:
        """Check for mistakes that the parser accepts or reports misleadingly."""
        body = _before_dashes(self.argv[1:])
        flag = parse_errors.list_flag_without_value(body, [self.core[0], *self._contexts()])
        if flag:
            raise parse_errors.needs_value(flag)
        repeated = _repeated_core_flag(body, self.core.unparsed, self.core[0].flags)
        if repeated:
            raise UsageError(f"{repeated} is given twice; it takes one value")

    def _make_parser(self) -> Parser:
        return Parser(initial=self.initial_context, contexts=self._contexts())

    def _contexts(self) -> list[ParserContext]:
        """Return the flags of the tasks that the command line may name; reading and copying those of all takes long."""
        ignores = self.config.tasks.ignore_unknown_help
        return [
            ParserContext(name=name, aliases=aliases, args=self.collection[name].get_arguments(ignores))
            for name, aliases in self.collection.task_names.items()
            if any(each in word for each in (name, *aliases) for word in self.argv[1:])
        ]

    def _check_help(self) -> None:
        """Check the task of `--help X` and `--list X`; suggest a task for an unknown X."""
        if self.args["list-format"].value not in _LIST_FORMATS:
            raise UsageError(f"-F (--list-format) must be flat, nested or json, got {self.args['list-format'].value!r}")
        for word in (self.args.help.value, self.args.list.value):
            if not isinstance(word, str) or (word == self.args.list.value and self._is_namespace(word)):
                continue
            if word not in self.parser.contexts:
                raise parse_errors.unknown_task(word, self._task_names())
            self.print_task_help(word)
            raise Exit

    def print_task_help(self, name: str) -> None:
        """Print the help of a task, with N or SECONDS for flags that take a number, where Invoke writes STRING."""
        context = self.parser.contexts[name]
        placeholders = getattr(self.collection[name], "placeholders", {})
        shown = with_placeholders(context.help_tuples(), placeholders)
        context.help_tuples = lambda: shown
        super().print_task_help(name)

    def _print_candidates(self) -> None:
        """Print the completion candidates of the last word after `--`, one per line."""
        from torchfab.cli import completion

        words = args_after_dashes(self.argv[1:]) or ()
        contexts = self.collection.to_contexts(ignore_unknown_help=True)
        tasks = {context.name: context for context in contexts}
        taking = [name for name in tasks if getattr(self.collection[name], "takes_command", False)]
        known = completion.Known(self.initial_context, tasks, taking, self._job_names, self._host_names)
        for each in completion.candidates(words[1:], known):
            print(each)

    def _job_names(self) -> list[str]:
        with suppress(Exit, OSError):
            self.update_config()
            records = self._project_folder() / Path(self.config.torchfab.records).expanduser()
            return sorted(path.parent.name for path in records.glob("*/record.json"))
        return []

    def _host_names(self) -> list[str]:
        from torchfab.core import hostfiles

        with suppress(Exit, OSError, TorchfabError):
            self.update_config()
            found = hostfiles.read_hosts(self._project_folder() / self.config.torchfab.hostfile)
            return [node.label for node in found.inventory.nodes]
        return []

    def _project_folder(self) -> Path:
        return Path(self.config._project_prefix or ".").absolute()

    def _is_namespace(self, word: str) -> bool:
        try:
            self.collection.subcollection_from_path(word)
        except KeyError:
            return False
        return True

    def _task_names(self) -> list[str]:
        collection = getattr(self, "collection", None)
        return sorted(collection.task_names) if collection is not None else []

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Print known errors as one line, and exit with code 2."""
        try:
            yield
        except TorchfabError as error:
            raise _exit(str(error), error.exit_code) from None
        except ParseError as error:
            known = parse_errors.parse_error(error, error.__traceback__, self._task_names())
            raise _exit(str(known or error), UsageError.exit_code) from None
        except Exception as error:
            explained = excepthook.explain(error, error.__traceback__)
            if explained is None:
                raise
            raise _exit(str(explained), explained.exit_code) from None


def _exit(text: str, code: int) -> Exit:
    text = program_name.called().replace_in(text)
    return Exit(text if text.startswith("error: ") else f"error: {text}", code=code)


def keep_compiled_modules() -> None:
    """Let Python keep compiled modules, unless the user has told it not to.

    Invoke forbids it, so that none lies beside a fabfile. Our own would be compiled for each command anew: a clone has
    none at first, and uv does not compile what it installs.
    """
    sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)


class FabfileLoader(FilesystemLoader):
    """Loads a fabfile, whose compiled module is not kept beside it."""

    def find(self, name: str) -> ModuleSpec | None:
        """Return where a fabfile is.

        Parameters
        ----------
        name : str
            Its name, without `.py`.

        Returns
        -------
        ModuleSpec or None
        """
        spec = super().find(name)
        if spec is not None and spec.origin:
            spec.loader = _UncompiledLoader(spec.name, spec.origin)
        return spec


class _UncompiledLoader(SourceFileLoader):
    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Keep nothing."""


class TorchfabProgram(Program):
    """The command `torchfab`: torchfab's own tasks in every folder. It loads no fabfile."""

    _tasks: Callable[[], ModuleType]

    @classmethod
    def make(cls, tasks: Callable[[], ModuleType]) -> TorchfabProgram:
        """Return the program.

        Parameters
        ----------
        tasks : callable
            Imports the module that holds the tasks.

        Returns
        -------
        TorchfabProgram
        """
        made = cls(
            name="Fabric",
            version=fabric.__version__,
            binary="torchfab",
            binary_names=["torchfab"],
            executor_class=Executor,
            config_class=fabric.Config,
        )
        made._tasks = tasks
        program_name.set_called(ProgramName(_own_name(sys.argv[0])))
        return made

    def task_args(self) -> list[Any]:
        """Return the flags of the program: those of `fab` except the name of a fabfile.

        Returns
        -------
        list of Argument
        """
        arguments = [each for each in super().task_args() if "collection" not in each.names]
        for each in arguments:
            if "search-root" in each.names:
                each.help = (
                    "Folder of the project. [the nearest one with torchfab.yaml, from the current folder upwards]"
                )
        return arguments

    def load_collection(self) -> None:
        """Load torchfab's own tasks."""
        self.collection = Collection.from_module(self._tasks(), auto_dash_names=True)
        program_name.set_called(ProgramName(_own_name(self.argv[0]), self.collection.task_names))

    def print_help(self) -> None:
        """Print the tasks, then the flags of the program itself."""
        self.load_collection()
        self.list_root, self.list_depth, self.list_format = None, None, "flat"
        self.scoped_collection = self.collection
        print(_INTRODUCTION)
        self.list_tasks()
        print("Flags before the task (other flags of Fabric are accepted too):\n")
        self.print_columns([(spelled, _FLAGS[key]) for spelled, key in self._shown_flags()])

    def _shown_flags(self) -> list[tuple[str, str]]:
        """Return the flags that apply to our tasks, as spelled, each with its key in _FLAGS."""
        tuples = self.initial_context.help_tuples()
        found = {spelled.split(",")[0].split("=")[0].split(" ")[0]: spelled for spelled, _ in tuples}
        return [(found[key], key) for key in _FLAGS]

    def _find_tasks(self) -> None:
        folder = self._start_folder()
        if not folder.is_dir():
            raise UsageError(
                f"-r {self.args['search-root'].value}: there is no such folder", "give the folder of a project"
            )


def _own_name(called_as: str) -> str:
    """Return `torchfab`; or `fab`, in a supervisor that the clone's `fab` started by our program's path."""
    in_clone = (Path(torchfab.__file__).parents[1] / "run").is_file()
    # `python -m torchfab` has the same path as argv[0], but a module specification too
    by_path = os.path.basename(called_as) == "__main__.py" and sys.modules["__main__"].__spec__ is None
    return program_name.FAB if in_clone and by_path else "torchfab"


def adopt() -> None:
    """Replace Fabric's program, which is loading the fabfile, by ours."""
    frame = sys._getframe(1)
    while frame is not None:
        program = frame.f_locals.get("self")
        if type(program) is Fab:
            program.__class__ = Program
            keep_compiled_modules()
            return
        frame = frame.f_back  # type: ignore[assignment]


def check_executor(name: object) -> None:
    """Check the setting `tasks.executor_class`.

    Parameters
    ----------
    name : object
        A dotted name; None for the program's own executor.

    Raises
    ------
    UsageError
        The name is not that of a class that can be imported.
    """
    if name is None:
        return
    try:
        found = pkgutil.resolve_name(str(name))
    except (ImportError, AttributeError, ValueError):
        found = None
    if not (isinstance(found, type) and issubclass(found, invoke.Executor)):
        raise UsageError(
            f"tasks.executor_class is not an executor class: {name!r}", f"omit it, or write {defaults.EXECUTOR}"
        )


def with_placeholders(tuples: Iterable[tuple[str, str]], placeholders: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the flags of a task for its help, with the given placeholders.

    Parameters
    ----------
    tuples : iterable of tuple of str
        Each flag with its value, as Invoke spells it (`--port=STRING`), and its help.
    placeholders : Mapping of str to str
        The placeholder of the value by the flag's name (`{"port": "N"}`); empty: Invoke's own.

    Returns
    -------
    list of tuple of str
    """
    found: list[tuple[str, str]] = []
    for spelled, text in tuples:
        flag = spelled.partition("=")[0]
        placeholder = placeholders.get(flag.lstrip("-").replace("-", "_"), "")
        if placeholder and flag == f"--{WORDS}":
            found.insert(0, (placeholder, text))
        else:
            found.append((f"{flag}={placeholder}" if placeholder else spelled, text))
    return found


def _completion_shell(words: list[str]) -> str | None:
    """Return the value of --print-completion-script; None if it is not given."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--print-completion-script":
            return value if equals else following
    return None


def _called_as() -> str:
    return os.path.basename(sys.argv[0]) if os.path.basename(sys.argv[0]) != "__main__.py" else "torchfab"


def _check_settings_file(path: str | None) -> None:
    if path and not os.path.isfile(path):
        what = "it is a folder" if os.path.isdir(path) else "there is no such file"
        raise UsageError(f"fab -f {path}: {what}", "fab -f takes a .yaml file of settings")


def _before_dashes(words: list[str]) -> list[str]:
    return words[: words.index("--")] if "--" in words else words


def _repeated_core_flag(body: list[str], unparsed: list[str], flags: Any) -> str:
    """Return the flag of `fab` that was given twice; empty if there is none."""
    at = len(body) - len(unparsed)
    if not unparsed or at < 0:
        return ""
    is_split = body[at] != unparsed[0]  # --flag=value, whose value is left unparsed
    flag = body[at].partition("=")[0] if is_split else body[at - 1] if at else ""
    argument = flags[flag] if flag in flags else None  # noqa: SIM401  # a Lexicon's get() knows no aliases
    if argument is None or not argument.takes_value or argument.kind is list or argument.optional:
        return ""
    return parse_errors.spelling(argument)


def make_program() -> Program:
    """Return the program of the commands `torchfab` and, in the clone, `fab`."""
    return Program(
        name="Fabric",
        version=fabric.__version__,
        loader_class=FabfileLoader,
        executor_class=Executor,
        config_class=fabric.Config,
    )


def main() -> None:
    """Run the command: the clone's `fab`, or `torchfab`."""
    make_program().run()
