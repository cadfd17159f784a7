"""`fab lemons`: the hosts that supervised launches leave out."""

from __future__ import annotations

import json
import time

from torchfab.core.console import write_out
from torchfab.core.inventory import fold
from torchfab.launch.context import CommandContext
from torchfab.supervise.quarantine import Quarantine


def show_lemons(ctx: CommandContext, forgive: str, as_json: bool) -> int:
    """Print the lemons, or forgive one or `all`; return 1 if there was none to forgive."""
    lemons = Quarantine(ctx.records.root)
    if forgive:
        gone = lemons.forgive(forgive)
        write_out(f"forgiven: {fold(gone)}" if gone else f"{forgive} is no lemon")
        return 0 if gone else 1
    found = lemons.all()
    if as_json:
        write_out(json.dumps({host: vars(lemon) for host, lemon in found.items()}, indent=2))
    elif not found:
        write_out("no lemons")
    for host, lemon in found.items() if not as_json else ():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(lemon.time))
        write_out(f"{host}  since {when}, job {lemon.job}: {lemon.reason}")
    return 0
