"""Check nodes, alone and against each other, before a launch.

    report = collect.examine(nodes, settings, CheckRequirements(workdir=..., python=..., node_dir=...))
    report.findings              problems, the worst first, each with its fix
    report.is_healthy("node7")   whether no error is about that node

`collect` connects to the nodes. Everything else is pure: `node`, `gpu`, `consistency` and `connectivity` derive
findings from the nodes' reports, and `render` turns findings into text.
"""

from torchfab.core.clock import Clock
from torchfab.doctor.finding import ERROR, NOTE, WARNING, Finding
from torchfab.doctor.model import CheckRequirements, NodeReport, Report

__all__ = ["ERROR", "NOTE", "WARNING", "CheckRequirements", "Clock", "Finding", "NodeReport", "Report"]
