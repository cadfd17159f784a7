"""`fab network`: launch the network benchmark as a job, print its results, and remove the job."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torchfab import documents, runtimes
from torchfab.cli.flags import LaunchFlags, NetworkFlags
from torchfab.core.command import Command
from torchfab.core.console import write_err, write_out
from torchfab.core.errors import TorchfabError
from torchfab.core.events import ContactLost, Lines, NodeEnded
from torchfab.launchers import network_benchmark
from torchfab.launching import launch
from torchfab.launching.context import CommandContext
from torchfab.launching.interrupts import InterruptibleOnce
from torchfab.network import report
from torchfab.network.report import BenchmarkResult
from torchfab.records import Record

# Shown in the record instead of a script: torchfab sends its own program.
_SCRIPT = ("-", "fab network")
_REQUEST: Mapping[str, Any] = {"follow": True, "lines": None, "ranks": [0], "grep": f"^{report.MARK}"}


def run(flags: NetworkFlags, ctx: CommandContext) -> int:
    """Measure the network and print the results.

    Parameters
    ----------
    flags : NetworkFlags
        The flags of `fab network`.
    ctx : CommandContext
        Working directory, environment, configuration and records.

    Returns
    -------
    int
        Exit code: 1 if a node or a link is slow, else 0.

    Raises
    ------
    TorchfabError
        The benchmark did not finish; the job and its logs are kept.
    Interrupted
        Ctrl-C; the job is removed.
    """
    ctx = replace(ctx, script=_SCRIPT, command=Command(_SCRIPT, is_program=False))
    patience_s = float(ctx.config["network_timeout_s"])
    own = network_benchmark.Flags(flags.seconds, flags.pairs, flags.backend, patience_s)
    name = f"network-{time.strftime('%m%d-%H%M%S', time.localtime(ctx.now))}-{ctx.token[:4]}"
    shared = LaunchFlags(
        name=name,
        hostfile=flags.hostfile,
        hostfile_format=flags.hostfile_format,
        env=flags.env,
        workdir=flags.workdir,
        python=flags.python,
        master_addr=flags.master_addr,
        grace=2.0,
    )
    record = launch.launch(network_benchmark, shared, own, ctx, announce=False)
    assert record is not None
    with InterruptibleOnce():
        try:
            measured = _read_results(record, flags.seconds + patience_s)
        except BaseException:  # Ctrl-C too
            _remove_job(record, ctx)
            raise
    return _report(record, measured, flags.json, ctx)


def _read_results(record: Record, within_s: float) -> BenchmarkResult:
    """Read the results that rank 0 prints, until they are complete, the job has ended, or the timeout."""
    measured, ended, lost = BenchmarkResult(nodes=len(record.nodes)), set[int](), set[int]()
    deadline = time.monotonic() + within_s
    for event in runtimes.load(record.runtime).follow(record, _REQUEST):
        if isinstance(event, Lines):
            for _, _, text in event.lines:
                measured.feed(text)
            _show_progress(measured)
        elif isinstance(event, NodeEnded):
            ended.add(event.status.node.rank)
            if event.status.state != "succeeded":
                break
        elif isinstance(event, ContactLost):
            lost.add(event.node.rank)
        if measured.done or 0 in lost or time.monotonic() > deadline:
            break
    _show_progress(None)
    return measured


def _show_progress(measured: BenchmarkResult | None) -> None:
    """Show the progress on a terminal; None clears it."""
    if not sys.stderr.isatty():
        return
    progress = ""
    if measured is not None:
        progress = f"{len(measured.sizes)} sizes" + (
            f", round {measured.rounds[0]} of {measured.rounds[1]}" if measured.links else ""
        )
    sys.stderr.write(f"\r{'measuring: ' if progress else ''}{progress}\x1b[K")
    sys.stderr.flush()


def _report(record: Record, measured: BenchmarkResult, as_json: bool, ctx: CommandContext) -> int:
    if not measured.done:
        _stop(record)
        raise TorchfabError(
            f"the measurement did not finish; job {record.name} is kept",
            f"fab why {record.name} | fab logs {record.name}",
        )
    _remove_job(record, ctx)
    hosts = [node.label for node in record.nodes]
    write_out(documents.encode(report.as_json(measured, hosts)) if as_json else report.render(measured, hosts))
    verdict = report.find_slow(measured.links)
    return 1 if verdict and (verdict.nodes or verdict.links) else 0


def _stop(record: Record) -> bool:
    """Stop the job; return whether all of its processes have ended."""
    reports = runtimes.load(record.runtime).stop(record, 2.0)
    return not any(report.error or report.left for report in reports)


def _remove_job(record: Record, ctx: CommandContext) -> None:
    """Stop the job, and remove its folders and its record; if a node is unreachable, keep the record for `fab stop`."""
    runtime = runtimes.load(record.runtime)
    if _stop(record) and not runtime.forget(record):
        ctx.records.release(record.name)
    else:
        name = record.name
        write_err(f"job {name} may still be on some nodes: fab stop {name}, then fab jobs --remove {name}")
