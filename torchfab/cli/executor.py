"""How `fab` runs torchfab's tasks: words after `--` unchanged, `-H` as hosts of one call, errors without tracebacks.

Named by `tasks.executor_class` in fabric.yaml, which is Invoke's supported hook.
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fabric
import invoke

from torchfab.core.console import print_error
from torchfab.core.errors import TorchfabError, UsageError


@dataclass(frozen=True)
class CommandLine:
    """What `fab` was given besides a task and its flags.

    Parameters
    ----------
    words : tuple of str, optional
        The words after `--`, unchanged; None where there is no `--`.
    hosts : str
        The value of `-H`; empty where it was not given.
    """

    words: tuple[str, ...] | None = None
    hosts: str = ""


class TaskContext(invoke.Context):
    """The context that a task is called with: Invoke's, with the rest of the command line."""

    command_line = CommandLine()


class TaskCall(invoke.Call):
    """A call of a task that hands the command line to its context."""

    def __init__(self, *args: Any, command_line: CommandLine, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.command_line = command_line

    def clone_data(self) -> dict[str, Any]:
        """Return what makes an equal call."""
        return {**super().clone_data(), "command_line": self.command_line}

    def make_context(self, config: invoke.Config) -> TaskContext:
        """Return the context for this call."""
        context = TaskContext(config=config)
        context._set(command_line=self.command_line)  # a plain assignment would be one to the configuration
        return context


def words_after_dashes(argv: Sequence[str]) -> tuple[str, ...] | None:
    """Return what stands after the first `--`, byte for byte; None when there is no `--`.

    Fabric's parser joins those words with blanks, and the quoting is lost.
    """
    words = tuple(argv)
    return words[words.index("--") + 1 :] if "--" in words else None


class Executor(fabric.Executor):  # type: ignore[misc]
    """Run tasks once, whatever `-H` says, and print errors as help."""

    def expand_calls(self, calls: Any, apply_hosts: bool = True) -> Any:
        """Expand pre- and post-tasks only; `-H` names the hosts of a job, not one call per host."""
        extra = {"command_line": self.command_line}
        return [call.clone(TaskCall, with_=extra) for call in invoke.Executor.expand_calls(self, calls)]

    def execute(self, *tasks: Any) -> Any:
        """Run the tasks; end the program with the exit code of an error."""
        collect_seldom()
        try:
            hosts = hosts_of(self.core[0].args.hosts.value)
            self.command_line = CommandLine(words_after_dashes(sys.argv[1:]), hosts)
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
        # `fab --debug TASK` and `fab TASK --debug` both end up in this flag of Invoke.
        if self.core[0].args.debug.value or os.environ.get("TORCHFAB_DEBUG", "0") not in ("", "0"):
            from torchfab.cli import debug_log

            os.environ["TORCHFAB_DEBUG"] = "1"  # the supervisor that a launch starts in tmux logs, too
            debug_log.enable([str(getattr(task, "name", task)) for task in tasks], sys.argv[1:], os.environ)

    def _check_core(self) -> None:
        # Invoke's own dry run is about `run()`, which no task of ours calls: a launch would be a launch.
        if self.core[0].args.dry.value:
            raise UsageError(
                "fab -R (--dry) is not for these tasks: they would really run",
                "launches and sync have a flag of their own, behind the task: --dry-run",
            )
        # Invoke skips a file that is not there, and the launch would run with other settings than those asked for.
        if self.core[0].args["connect-timeout"].value == 0:  # Fabric takes it for none given
            raise UsageError("-t is at least 1 second, got 0", "leave it out for the default, or give more")
        path = self.core[0].args.config.value
        if path and not os.path.exists(os.path.expanduser(path)):
            raise UsageError(f"fab -f {path}: there is no such file", "name a .yaml file with settings")


def collect_seldom() -> None:
    """Let Python look for garbage a hundred times less often than it does by itself.

    Little of what is made here is ever part of a cycle, and much is kept: the lines of a log until they are printed, a
    thousand connections. To look through all of it again and again took a third of the time of `fab logs`.
    """
    gc.freeze()
    gc.set_threshold(70_000, 20, 20)


def check_order(tasks: Sequence[str]) -> None:
    """Check that no task follows a launch: it is a word of the script for which `--` was forgotten, or a slip.

    Raises
    ------
    UsageError
        A launch is not the last task.
    """
    for name, following in itertools.pairwise(tasks):
        if name.startswith("launch-"):
            raise UsageError(
                f"{name} is followed by the task {following}, and a launch stands last",
                f"fab {name} … && fab {following}; if {following} is your script: fab {name} -- {following}",
            )


def hosts_of(flag: str | None) -> str:
    """Return what `-H` names; nothing where it was not given.

    Raises
    ------
    UsageError
        It is empty: `-H "$HOSTS"` with an unset HOSTS is a slip, and no wish for all hosts of the file.
    """
    if flag is not None and not flag.strip():
        raise UsageError("-H is empty", "name hosts: -H host1,host2; or leave it out for those of the hosts file")
    return flag or ""
