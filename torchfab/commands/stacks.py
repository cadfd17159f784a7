"""`fab stacks`: print the current stack of every rank of a job."""

from __future__ import annotations

from torchfab import documents
from torchfab.core import inventory
from torchfab.core.console import write_err, write_out
from torchfab.monitoring.stack_dump import StackOptions, collect
from torchfab.records import Record
from torchfab.stacks import report

__all__ = ["StackOptions", "show_stacks"]


def show_stacks(record: Record, options: StackOptions, as_json: bool) -> int:
    """Print the stacks of a job's ranks.

    Parameters
    ----------
    record : Record
        The job.
    options : StackOptions
        What to collect and print.
    as_json : bool
        Print JSON.

    Returns
    -------
    int
        Exit code: 0 if every running rank has a stack, else 1.
    """
    found = collect(record, options)
    if as_json:
        write_out(documents.encode(report.as_json(record.name, found, options.exact)))
    else:
        write_out(report.render(record.name, found, options.everything, options.exact))
    sent = [node.node.label for node in found.nodes if node.py_spy == "sent"]
    if sent:
        write_err(
            f"py-spy was sent to {inventory.fold(sent)} and removed again; to avoid that: pip install py-spy there"
        )
    return 0 if found.is_whole and found.running else 1
