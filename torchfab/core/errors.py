"""The hierarchy of all errors that torchfab raises. This module imports no other one.

TorchfabError                printed by the command line without a traceback; raised by the Python API
├── UsageError               a flag, an argument or a setting is wrong          (exit 2)
│   ├── InventoryError       a line of `hosts` or `gpus` is wrong
│   └── JobNameError         a job name is malformed, taken or unknown
├── HostError                one host failed: why, and how to fix it            (exit 1)
├── HostsFailedError         some hosts failed; carries one reason per host     (exit 1)
├── JobFailedError           a job did not succeed; raised by the Python API only
│   └── FunctionError        a function raised an exception on a rank
├── WaitTimeoutError         a job did not end in time; raised by the Python API only
└── Interrupted              Ctrl-C, after the launch was rolled back           (exit 130)
"""

from __future__ import annotations

from collections.abc import Mapping


class TorchfabError(Exception):
    """Base class; the message states what was expected, what was given, where, and how to fix it.

    Parameters
    ----------
    message : str
        One line: what is wrong, and where.
    fix : str
        One line: how to fix it; empty if the message is enough.

    Attributes
    ----------
    uncertain_hosts : tuple of str
        Hosts on which processes of a failed launch may still run; empty for nearly all errors.
    """

    exit_code = 1
    uncertain_hosts: tuple[str, ...] = ()

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message


class UsageError(TorchfabError):
    """A flag, an argument or a setting is wrong; nothing was started."""

    exit_code = 2


class InventoryError(UsageError):
    """A line of a hosts or gpus file is wrong; the message names file and line."""


class JobNameError(UsageError):
    """A job name is malformed, already taken, or not known on this launch machine."""


class HostError(TorchfabError):
    """One host failed: why, and how to fix it.

    Parameters
    ----------
    address : str
        The address of the host, if the message contains it: it is masked when equal errors of hosts are grouped.
    """

    def __init__(self, message: str, fix: str = "", address: str = "") -> None:
        super().__init__(message, fix)
        self.address = address


class HostsFailedError(TorchfabError):
    """Some hosts failed; the other hosts are fine.

    Parameters
    ----------
    message : str
        How many hosts failed, and during which action.
    reasons : Mapping[str, TorchfabError]
        The error of each failed host, by its name in the hosts file.
    fix : str
        One line: how to fix it. Default: empty, because each reason has its own fix.

    Attributes
    ----------
    listing : str
        The reasons as further lines of the text; empty if the command line prints them.
    """

    def __init__(self, message: str, reasons: Mapping[str, TorchfabError], fix: str = "") -> None:
        super().__init__(message, fix)
        self.reasons = dict(reasons)
        self.listing = ""

    def __str__(self) -> str:
        return super().__str__() + self.listing


class JobFailedError(TorchfabError):
    """A job ended without success.

    Parameters
    ----------
    message : str
        As `fab wait` prints it: which rank failed first, and how.
    exit_code : int
        The exit code of the job.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class FunctionError(JobFailedError):
    """A function that ran on all ranks raised an exception on one of them, before any other rank failed.

    Its `__cause__` is that exception, if it can be unpickled here.

    Parameters
    ----------
    rank : int
        The rank.
    host : str
        The node that it ran on.
    message : str
        One line: type and message of the exception.
    traceback : str
        The traceback on that node.
    """

    def __init__(self, rank: int, host: str, message: str, traceback: str) -> None:
        super().__init__(f"rank {rank} on {host} raised {message}", 1)
        self.rank, self.host, self.traceback = rank, host, traceback

    def __str__(self) -> str:
        return f"{super().__str__()}\n\nOn {self.host}, rank {self.rank}:\n{self.traceback.rstrip()}"


class WaitTimeoutError(TorchfabError, TimeoutError):
    """A job did not end before the timeout; it is still running."""


class Interrupted(TorchfabError):
    """The user pressed Ctrl-C; the launch was rolled back, and the message says so."""

    exit_code = 130


def failed_as_json(errors: Mapping[str, TorchfabError | str]) -> dict[str, dict[str, str]]:
    """Return the value of `failed` in a JSON document: the hosts that could not be asked, or where a step failed.

    Parameters
    ----------
    errors : Mapping of str to TorchfabError or str
        The error of each host, or its text.

    Returns
    -------
    dict of str to dict
        `error` and `fix` of each host; `fix` is empty if none is known.
    """
    return {
        host: {"error": each, "fix": ""} if isinstance(each, str) else {"error": each.message, "fix": each.fix}
        for host, each in errors.items()
    }
