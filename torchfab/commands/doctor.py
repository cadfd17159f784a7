"""`fab doctor`: check hosts for a launch, and print the findings."""

from __future__ import annotations

import os
import sys

from torchfab import documents
from torchfab.cli.flags import DoctorFlags
from torchfab.core import environment, requirements_file, specs
from torchfab.core.console import write_out
from torchfab.core.errors import UsageError
from torchfab.doctor import render
from torchfab.doctor.collect import examine
from torchfab.doctor.model import CheckRequirements
from torchfab.launching.context import CommandContext, setup_commands
from torchfab.launching.hosts import read_nodes
from torchfab.launching.interpreter import default_python
from torchfab.remote.host import code_digest


def run(flags: DoctorFlags, ctx: CommandContext) -> int:
    """Check the hosts and print the findings.

    Parameters
    ----------
    flags : DoctorFlags
        The flags of `fab doctor`.
    ctx : CommandContext
        Working directory, environment and configuration.

    Returns
    -------
    int
        Exit code: 0 if no finding is an error, else 1.

    Raises
    ------
    UsageError
        A flag or the hosts file is invalid.
    """
    nodes = read_nodes(flags.hostfile, ctx, flags.hostfile_format)
    report = examine(nodes, ctx.settings, check_requirements(flags, ctx))
    if flags.json:
        write_out(documents.encode(render.as_json(report)))
    else:
        write_out(render.render_report(report, sys.stdout.isatty() and not ctx.environ.get("NO_COLOR")))
    return 1 if report.errors() else 0


def check_requirements(flags: DoctorFlags, ctx: CommandContext) -> CheckRequirements:
    """Return the requirements of a launch with these flags.

    Parameters
    ----------
    flags : DoctorFlags
        The flags of `fab doctor`.
    ctx : CommandContext
        Working directory, environment and configuration.

    Returns
    -------
    CheckRequirements
        Directory, interpreter, port, environment and code digest that all hosts must match.

    Raises
    ------
    UsageError
        `--workdir` is not an absolute path, or `--setup` holds a secret.
    """
    workdir = flags.workdir or ctx.cwd
    if not workdir.startswith("/"):
        raise UsageError(f"--workdir must be an absolute path, got {workdir!r}")
    names = code_digest.tracked(workdir) if os.path.isdir(workdir) else None
    return CheckRequirements(
        workdir=workdir,
        python=flags.python or default_python(ctx.environ, ctx.root),
        node_dir=specs.node_dir(ctx.config["node_dir"], workdir),
        master_addr=flags.master_addr,
        port=flags.port,
        env=environment.select_forwarded(ctx.environ, ctx.config["forward"]),
        names=None if names is None else tuple(names),
        lists=requirements_file.digests(ctx.root),
        setup=setup_commands(flags.setup, ctx),
        setup_timeout_s=float(ctx.config["setup_timeout_s"]),
        python_is_default=not flags.python,
        digest="" if names is None else code_digest.digest_workdir(workdir, names)["digest"],
    )
