"""`fab doctor`: from flags to questions, from findings to text."""

from __future__ import annotations

import json
import os
import sys

from torchfab import environment, launch
from torchfab.commandline import say
from torchfab.doctor import show
from torchfab.doctor.asking import examine
from torchfab.doctor.report import Wanted
from torchfab.errors import UsageError
from torchfab.flags import DoctorFlags
from torchfab.job import check_port
from torchfab.remote import code
from torchfab.surroundings import Surroundings


def run(flags: DoctorFlags, around: Surroundings) -> int:
    """Examine the hosts and print what was found; return 0 if no error was.

    Raises
    ------
    UsageError
        A flag or the hosts file is wrong.
    """
    nodes = launch.read_nodes(flags.hostfile, around)
    report = examine(nodes, around.settings, wanted_of(flags, around))
    if flags.json:
        say(json.dumps(show.as_json(report), indent=2))
    else:
        say(show.text(report, sys.stdout.isatty() and not around.environ.get("NO_COLOR")))
    return 1 if report.errors() else 0


def wanted_of(flags: DoctorFlags, around: Surroundings) -> Wanted:
    """Return what a launch with these flags would need."""
    workdir = flags.workdir or around.cwd
    if not workdir.startswith("/"):
        raise UsageError(f"--workdir must be an absolute path, got {workdir!r}")
    port = launch.number("--port", flags.port)
    check_port(port)
    names = code.tracked(workdir) if os.path.isdir(workdir) else None
    return Wanted(
        workdir=workdir,
        python=flags.python or sys.executable,
        node_dir=launch.node_dir(around.config["node_dir"], workdir),
        master_addr=flags.master_addr,
        port=port,
        env=environment.forwarded(around.environ, around.config["forward"]),
        names=None if names is None else tuple(names),
        digest="" if names is None else code.look(workdir, names)["digest"],
    )
