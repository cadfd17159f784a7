"""Print results on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import re
import sys

from torchfab.core.errors import HostsFailedError, TorchfabError


def print_error(error: TorchfabError) -> None:
    """Print an error on stderr: what is wrong, where, and how to fix it."""
    write_err(f"error: {error}")
    if isinstance(error, HostsFailedError):
        for paragraph in fold_reasons(error):
            write_err(paragraph)


def fold_reasons(error: HostsFailedError) -> list[str]:
    """Return one paragraph per reason, with the hosts that failed alike folded into one name."""
    from torchfab.core.inventory import fold

    alike: dict[str, list[str]] = {}
    for host, reason in error.reasons.items():
        alike.setdefault(_without_names(host, reason), []).append(host)
    paragraphs = []
    for text, hosts in alike.items():
        shown = str(error.reasons[hosts[0]]) if len(hosts) == 1 else text
        paragraphs.append(f"  {fold(hosts)}: " + shown.replace("\n", "\n    "))
    return paragraphs


def _without_names(host: str, reason: TorchfabError) -> str:
    """Return a reason's text in which neither the host nor its address are named, so that hosts can be compared."""
    text = str(reason)
    for name, placeholder in ((getattr(reason, "address", ""), "ADDRESS"), (host, "HOST")):
        if name:
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-]|\.\w)", placeholder, text)
    return text


def write_out(text: str) -> None:
    """Print a result on stdout, whatever bytes are in it."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.flush()


def write_err(text: str) -> None:
    """Print progress, advice or an error on stderr; what a host said in it steers no terminal."""
    from torchfab.core.log_lines import clean

    print("\n".join(map(clean, text.split("\n"))), file=sys.stderr, flush=True)


def progress(phase: str, done: int, total: int) -> None:
    """Show on a terminal how far a phase has come, on one line."""
    if sys.stderr.isatty():
        end = "\r" if done < total else "\r\x1b[K"
        sys.stderr.write(f"\r{phase} {done}/{total}\x1b[K{end}")
        sys.stderr.flush()
