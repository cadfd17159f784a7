"""What is wrong with nodes, each and between them, before a launch is.

    report = doctor.examine(nodes, settings, doctor.Wanted(workdir=..., python=..., node_dir=...))
    report.findings              what is wrong, worst first, each with its fix
    report.is_healthy("node7")   whether an error is about that node

`asking` talks to the nodes; everything else here is pure: what the nodes told becomes findings (`node`, `gpu`,
`between`, `way`), and findings become text (`show`).
"""

from torchfab.doctor.collect import examine
from torchfab.doctor.finding import ERROR, NOTE, WARNING, Finding
from torchfab.doctor.model import CheckRequirements, Clock, NodeReport, Report

__all__ = ["ERROR", "NOTE", "WARNING", "CheckRequirements", "Clock", "Finding", "NodeReport", "Report", "examine"]
