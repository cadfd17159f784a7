"""Print results on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torchfab.core import program_name
from torchfab.core.errors import HostsFailedError, TorchfabError

_receivers: list[Callable[[str], None]] = []


@contextmanager
def redirected(receive: Callable[[str], None]) -> Iterator[None]:
    """Print nothing inside the block, in any thread: results and messages go to a function, progress is dropped.

    Parameters
    ----------
    receive : callable
        Called with each text, without the last line end.

    Yields
    ------
    None
    """
    _receivers.append(receive)
    try:
        yield
    finally:
        _receivers.remove(receive)


def _redirect(text: str) -> bool:
    """Pass a text to the innermost receiver; return whether there is one. Other threads may end their blocks."""
    for receive in _receivers[-1:]:
        receive(text)
        return True
    return False


def print_error(error: TorchfabError) -> None:
    """Print an error on stderr: what is wrong, where, and how to fix it.

    Parameters
    ----------
    error : TorchfabError
        The error; of a HostsFailedError, the reasons of all hosts are printed.
    """
    write_err(f"error: {error}")
    if isinstance(error, HostsFailedError):
        for paragraph in fold_reasons(error):
            write_err(paragraph)


def fold_reasons(error: HostsFailedError) -> list[str]:
    """Group the hosts of an error by reason.

    Parameters
    ----------
    error : HostsFailedError
        The error.

    Returns
    -------
    list of str
        One paragraph per reason: the folded names of its hosts, and the reason.
    """
    from torchfab.core.inventory import fold

    hosts_by_text: dict[str, list[str]] = {}
    for host, reason in error.reasons.items():
        hosts_by_text.setdefault(_without_names(host, reason), []).append(host)
    paragraphs = []
    for text, hosts in hosts_by_text.items():
        reason_text = str(error.reasons[hosts[0]]) if len(hosts) == 1 else text
        paragraphs.append(f"  {fold(hosts)}: " + reason_text.replace("\n", "\n    "))
    return paragraphs


def _without_names(host: str, reason: TorchfabError) -> str:
    """Return a reason's text with placeholders for the host and its address, so that hosts can be compared."""
    text = str(reason)
    for name, placeholder in ((getattr(reason, "address", ""), "ADDRESS"), (host, "HOST")):
        if name:
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-]|\.\w)", placeholder, text)
    return text


def write_out(text: str) -> None:
    """Print a result on stdout; `fab` in it is replaced by the program name in use.

    Parameters
    ----------
    text : str
        The result, without the last line end.
    """
    write_verbatim(program_name.called().replace_in(text))


def write_verbatim(text: str) -> None:
    """Print log lines on stdout; bytes that are not UTF-8 (surrogate escapes) are written unchanged.

    Parameters
    ----------
    text : str
        The lines, without the last line end.
    """
    if _redirect(text):
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.flush()


def write_err(text: str) -> None:
    """Print progress, advice or an error on stderr, without control characters that a host may have put into it.

    Parameters
    ----------
    text : str
        The message, without the last line end.
    """
    from torchfab.core.log_lines import strip_controls

    text = program_name.called().replace_in(text)
    text = "\n".join(map(strip_controls, text.split("\n")))
    if not _redirect(text):
        print(text, file=sys.stderr, flush=True)


def progress(phase: str, done: int, total: int) -> None:
    """Show the progress of a phase on one line of the terminal; print nothing if stderr is not a terminal.

    Parameters
    ----------
    phase : str
        The name of the phase.
    done, total : int
        The number of finished hosts, and of all hosts.
    """
    if not _receivers and sys.stderr.isatty():
        end = "\r" if done < total else "\r\x1b[K"
        sys.stderr.write(f"\r{phase} {done}/{total}\x1b[K{end}")
        sys.stderr.flush()
