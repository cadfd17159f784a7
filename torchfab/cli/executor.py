"""How `fab` runs torchfab's tasks: arguments after `--` unchanged, `-H` as hosts of one call, no tracebacks.

Named by `tasks.executor_class` in fabric.yaml, which is Invoke's supported hook.
"""

from __future__ import annotations

import gc
import itertools
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import fabric
import invoke

from torchfab.core.console import print_error
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.lazy_dataclass import dataclass


@dataclass(frozen=True)
class CommandLine:
    """The parts of the command line besides tasks and their flags.

    Parameters
    ----------
    script : tuple of str, optional
        The arguments after `--`, unchanged: a script and its own arguments; None without a `--`.
    hosts : str
        The value of `-H`; empty if it was not given.
    project : Path
        The project's folder, with its settings, hosts and records. Default: the current folder.
    """

    script: tuple[str, ...] | None = None
    hosts: str = ""
    project: Path = field(default_factory=Path.cwd)


class TaskContext(invoke.Context):
    """Invoke's context of a task, extended with the rest of the command line."""

    command_line = CommandLine()


class TaskCall(invoke.Call):
    """A call of a task that passes the command line to its context."""

    def __init__(self, *args: Any, command_line: CommandLine, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.command_line = command_line

    def clone_data(self) -> dict[str, Any]:
        """Return the constructor arguments of an equal call.

        Returns
        -------
        dict of str to Any
            By parameter name.
        """
        return {**super().clone_data(), "command_line": self.command_line}

    def make_context(self, config: invoke.Config) -> TaskContext:
        """Return the context for this call.

        Parameters
        ----------
        config : invoke.Config
            The merged configuration.

        Returns
        -------
        TaskContext
            With the command line.
        """
        context = TaskContext(config=config)
        context._set(command_line=self.command_line)  # a plain assignment would change the configuration
        return context


def args_after_dashes(argv: Sequence[str]) -> tuple[str, ...] | None:
    """Return the arguments after the first `--`, byte for byte.

    Fabric's parser joins those arguments with blanks, which loses the quoting.

    Parameters
    ----------
    argv : sequence of str
        The command line.

    Returns
    -------
    tuple of str or None
        None when there is no `--`.
    """
    args = tuple(argv)
    return args[args.index("--") + 1 :] if "--" in args else None


class Executor(fabric.Executor):  # type: ignore[misc]
    """Run tasks once, also with `-H`, and print errors with their fix."""

    def expand_calls(self, calls: Any, apply_hosts: bool = True) -> Any:
        """Expand pre- and post-tasks only; `-H` names the hosts of a job, not one call per host.

        Parameters
        ----------
        calls : list of invoke.Call
            The calls of the command line.
        apply_hosts : bool
            Ignored; part of Fabric's interface.

        Returns
        -------
        list of TaskCall
            The calls to make, in order.

        Raises
        ------
        UsageError
            There are words after `--`, and no task takes any.
        """
        extra = {"command_line": self.command_line}
        expanded = [call.clone(TaskCall, with_=extra) for call in invoke.Executor.expand_calls(self, calls)]
        check_words([call.task for call in expanded], self.command_line.script)
        return expanded

    def execute(self, *tasks: Any) -> Any:
        """Run the tasks; exit with the code of an error.

        Parameters
        ----------
        *tasks
            Names or calls, as Invoke passes them.

        Returns
        -------
        dict
            The results by task, as Invoke returns them.

        Raises
        ------
        SystemExit
            A task failed or was interrupted.
        """
        reduce_gc_frequency()
        try:
            hosts = check_hosts_flag(self.core[0].args.hosts.value)
            project = Path(self.config._project_prefix or ".").absolute()
            self.command_line = CommandLine(args_after_dashes(sys.argv[1:]), hosts, project)
            self._start_debug_log(tasks)
            self._check_core()
            check_order([str(getattr(each, "name", each)) for each in tasks])
            return super().execute(*tasks)
        except TorchfabError as error:
            print_error(error)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # `fab logs | head`
            sys.stderr.close()
            raise SystemExit(141) from None

    def _start_debug_log(self, tasks: Sequence[Any]) -> None:
        # `fab --debug TASK` and `fab TASK --debug` both set this flag of Invoke.
        if self.core[0].args.debug.value or os.environ.get("TORCHFAB_DEBUG", "0") not in ("", "0"):
            from torchfab.cli import debug_log

            os.environ["TORCHFAB_DEBUG"] = "1"  # the supervisor that a launch starts in tmux also logs
            debug_log.enable([str(getattr(task, "name", task)) for task in tasks], sys.argv[1:], os.environ)

    def _check_core(self) -> None:
        # Invoke's own dry run affects `run()` only, which no task here calls: the launch would be real.
        if self.core[0].args.dry.value:
            raise UsageError(
                "fab -R (--dry) has no effect on these tasks: they would really run",
                "launches and sync have their own flag, after the task: --dry-run",
            )
        if self.core[0].args["connect-timeout"].value == 0:  # Fabric treats 0 as not given
            raise UsageError("-t must be at least 1 second, got 0", "omit it for the default, or give a larger value")
        # Invoke skips a missing file, and the launch would run with other settings than the requested ones.
        path = self.core[0].args.config.value
        if path and not os.path.exists(os.path.expanduser(path)):
            raise UsageError(f"fab -f {path}: there is no such file", "name a .yaml file with settings")


def reduce_gc_frequency() -> None:
    """Make Python's garbage collector run a hundred times less often than by default.

    Few of our objects are ever part of a cycle, and many live long: the lines of a log until they are printed, a
    thousand connections. Scanning all of them repeatedly took a third of the time of `fab logs`.
    """
    gc.freeze()
    gc.set_threshold(70_000, 20, 20)


def check_order(tasks: Sequence[str]) -> None:
    """Check that no task follows a launch: such a word is often a script without the `--`.

    Raises
    ------
    UsageError
        A launch is not the last task.
    """
    for name, following in itertools.pairwise(tasks):
        if name.startswith("launch-"):
            raise UsageError(
                f"{name} is followed by the task {following}; a launch must be the last task",
                f"fab {name} … && fab {following}; if {following} is your script: fab {name} -- {following}",
            )


def check_words(tasks: Sequence[Any], words: Sequence[str] | None) -> None:
    """Check that a task takes the words after `--`.

    Parameters
    ----------
    tasks : sequence of invoke.Task
        The tasks of the command line. A task of the user's own fabfile may read the words itself.
    words : sequence of str, optional
        The words; None without a `--`.

    Raises
    ------
    UsageError
        No task takes them.
    """
    if words and tasks and not any(getattr(task, "takes_command", True) for task in tasks):
        name = str(tasks[-1].name).replace("_", "-")
        line = shlex.join(["fab", name, *words])
        raise UsageError(f"{name} takes nothing after --, got {shlex.join(words)}", f"without the --: {line}")


def check_hosts_flag(flag: str | None) -> str:
    """Return the value of `-H`.

    Parameters
    ----------
    flag : str, optional
        The value on the command line; None if it was not given.

    Returns
    -------
    str
        Empty if it was not given.

    Raises
    ------
    UsageError
        It is empty: `-H "$HOSTS"` with an unset HOSTS is a mistake, not a request for all hosts of the file.
    """
    if flag is not None and not flag.strip():
        raise UsageError("-H is empty", "give hosts: -H host1,host2; or omit it to use the hosts file")
    return flag or ""
