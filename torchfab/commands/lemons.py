"""`fab lemons`: the lemon hosts (hosts with repeated failures) that supervised launches leave out."""

from __future__ import annotations

import time

from torchfab import documents
from torchfab.core.console import write_out
from torchfab.core.inventory import fold
from torchfab.launching.context import CommandContext
from torchfab.supervise.quarantine import Quarantine


def show_lemons(ctx: CommandContext, forgive: str, as_json: bool) -> int:
    """Print the quarantined hosts, or remove one or `all` from the quarantine.

    Parameters
    ----------
    ctx : CommandContext
        Records of this project.
    forgive : str
        Host to remove, or `all`; empty: print.
    as_json : bool
        Print JSON.

    Returns
    -------
    int
        Exit code: 1 if there was no host to remove, else 0.
    """
    quarantine = Quarantine(ctx.records.root)
    if forgive:
        removed = quarantine.forgive(forgive)
        write_out(f"removed from the list: {fold(removed)}" if removed else f"{forgive} is not on the list of lemons")
        return 0 if removed else 1
    lemons = quarantine.all()
    if as_json:
        write_out(documents.encode({"lemons": [{"host": host, **vars(lemon)} for host, lemon in lemons.items()]}))
    elif not lemons:
        write_out("no lemons")
    for host, lemon in lemons.items() if not as_json else ():
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(lemon.time))
        write_out(f"{host}  since {since}, job {lemon.job}: {lemon.reason}")
    return 0
