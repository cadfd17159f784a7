"""The program name in messages: texts contain `fab`, which is replaced if the program was called as `torchfab`."""

from __future__ import annotations

import re
from collections.abc import Iterable

FAB = "fab"


class ProgramName:
    """The name by which the program was called.

    Parameters
    ----------
    name : str
        The name. Default `fab`.
    tasks : iterable of str, optional
        The names of all tasks. Default None: any word may be a task.
    """

    def __init__(self, name: str = FAB, tasks: Iterable[str] | None = ()) -> None:
        self.name = name
        words = ["[a-z]"] if tasks is None else [rf"{re.escape(task)}(?![\w-])" for task in sorted(tasks)]
        follow = "|".join(["--?[A-Za-z]", *words])
        self._command = re.compile(rf"(?<![\w./@~:=-]){FAB}(?= +(?:{follow}))")

    def replace_in(self, text: str) -> str:
        """Return a text with the program name replaced in its commands.

        Parameters
        ----------
        text : str
            The text; commands in it are `fab TASK` or `fab --flag`.

        Returns
        -------
        str
        """
        return text if self.name == FAB else self._command.sub(self.name, text)


_called = [ProgramName()]


def set_called(name: ProgramName) -> None:
    """Set the name for this process.

    Parameters
    ----------
    name : ProgramName
        The name.
    """
    _called[0] = name


def called() -> ProgramName:
    """Return the name by which the program was called.

    Returns
    -------
    ProgramName
    """
    return _called[0]
