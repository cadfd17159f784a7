"""How `fab` runs torchfab's tasks: words after `--` unchanged, `-H` as hosts of one call, errors without tracebacks.

Named by `tasks.executor_class` in fabric.yaml, which is Invoke's supported hook.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import Any

import fabric
import invoke

from torchfab.core.console import print_error
from torchfab.core.errors import TorchfabError, UsageError


def words_after_dashes(argv: Sequence[str]) -> list[str] | None:
    """Return what stands after the first `--`, byte for byte; None when there is no `--`.

    Fabric's parser joins those words with blanks, and the quoting is lost.
    """
    words = list(argv)
    return words[words.index("--") + 1 :] if "--" in words else None


class Executor(fabric.Executor):  # type: ignore[misc]
    """Run tasks once, whatever `-H` says, and print errors as help."""

    def expand_calls(self, calls: Any, apply_hosts: bool = True) -> Any:
        """Expand pre- and post-tasks only; `-H` names the hosts of a job, not one call per host."""
        return invoke.Executor.expand_calls(self, calls)

    def execute(self, *tasks: Any) -> Any:
        """Run the tasks; end the program with the exit code of an error."""
        collect_seldom()
        self.config["torchfab"]["words"] = words_after_dashes(sys.argv[1:])
        try:
            self.config["torchfab"]["hosts"] = hosts_of(self.core[0].args.hosts.value)
            self._check_core()
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

    def _check_core(self) -> None:
        # Invoke's own dry run is about `run()`, which no task of ours calls: a launch would be a launch.
        if self.core[0].args.dry.value:
            raise UsageError(
                "fab -R (--dry) is not for these tasks: they would really run",
                "launches and sync have a flag of their own, behind the task: --dry-run",
            )
        # Invoke skips a file that is not there, and the launch would run with other settings than those asked for.
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
