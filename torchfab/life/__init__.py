"""The life of a job, as commands: jobs, status, logs, wait, attach, stop.

They ask the job's runtime, never its launcher.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torchfab import inventory, runtimes, stall, status
from torchfab.columns import columns
from torchfab.commandline import fold_reasons, say, tell
from torchfab.errors import HostsFailedError, TorchfabError, UsageError
from torchfab.fanout import fan_out
from torchfab.job import Node
from torchfab.records import Record, Records
from torchfab.supervise import lock, remains, standing, story
from torchfab.surroundings import Surroundings
from torchfab.watch import NO_LINES, Printer, Watch, describe_failure

DEFAULT_LINES = 1000
_JOBS_AT_ONCE = 8


def find(job: str, around: Surroundings, attempt: str = "") -> Record:
    """Return the record of a job, or of one of its attempts; of the latest job where none is named, and say so.

    `-S`, `-i` and `-t` on the command line, and today's timeouts, replace what the job was launched with.
    """
    record = around.records.get(job) if job else around.records.latest()
    if not job:
        tell(f"job {record.name} (the latest)")
    return _as_of_today(around.records.attempt(record, attempt), around)


def _as_of_today(record: Record, around: Surroundings) -> Record:
    given = around.settings
    settings = replace(
        record.settings,
        ssh_config=given.ssh_config or record.settings.ssh_config,
        identities=given.identities or record.settings.identities,
        connect_timeout_s=given.connect_timeout_s,
        timeout_is_given=given.timeout_is_given,
        answer_timeout_s=given.answer_timeout_s,
        fanout=given.fanout,
    )
    return replace(record, settings=settings)


def stall_s(flag: str, around: Surroundings) -> float:
    """Return after how many seconds of silence a job is said to hang: by the flag `--stall`, else by the setting."""
    from torchfab import launch  # and with it the checks of a launch, for which a status has no use

    return launch.seconds("--stall", flag) if flag else float(around.config["stall_s"])


# ---- status


def ask_status(record: Record) -> status.JobStatus:
    """Return how the job is, and remember it."""
    found: status.JobStatus = runtimes.of(record.runtime).status(record)
    record.remember(found.state, found.exit_code, found.has_ended)
    return found


def show_status(record: Record, watch: bool, as_json: bool, stall_s: float) -> int:
    """Print how the job is, and whether it has been silent for `stall_s` seconds; return 0 if it is well, else 1."""
    while True:
        found = ask_status(record)
        if as_json:
            more = {"stall": stall.as_json(found, stall_s), **standing.as_json(record)}
            say(json.dumps({**status.as_json(record.name, found), **more}, indent=2))
        else:
            if watch and sys.stdout.isatty():
                sys.stdout.write("\x1b[H\x1b[2J")
            say(status_text(record, found))
            if supervised := standing.words(record, found.state):
                say(supervised)
            if silence := stall.find(found, stall_s):
                say(stall.words(silence, record.name))
        if not watch or found.has_ended:
            return 0 if found.state in ("pending", "starting", "running", "succeeded") else 1
        time.sleep(2)


def status_text(record: Record, found: status.JobStatus) -> str:
    """Return the status of a job for people."""
    launched = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
    head = f"job {record.name}: {found.state} ({record.launcher}, {record.world_size} ranks, launched {launched})"
    lines = [head, *([columns(status.table(found))] if found.nodes else [])]
    if found.reason and not found.has_failed:
        lines.append(found.reason)
    if found.has_failed and found.state != "stopped":
        lines.append(f"{describe_failure(found)}; fab why {record.name} | fab logs {record.name}{_rank_flag(found)}")
        if not found.has_ended:
            lines.append(f"other processes still run; to end them: fab stop {record.name}")
    return "\n".join(lines)


def _rank_flag(found: status.JobStatus) -> str:
    first = found.first_failure
    return f" --rank {first.rank}" if first and first.rank is not None else ""


# ---- why


def show_why(record: Record, as_json: bool) -> int:
    """Print why a job ended as it did; return 0 if every node could be asked, else 1."""
    from torchfab.why import page, story

    found = runtimes.of(record.runtime).evidence(record)
    record.remember(found.status.state, found.status.exit_code, found.status.has_ended)
    told = story.tell(found)
    say(json.dumps(page.as_json(told), indent=2) if as_json else page.text(told))
    return 1 if told.silent else 0


# ---- jobs


def show_events(record: Record, as_json: bool) -> None:
    """Print what happened to a job, a line each."""
    if as_json:
        say(json.dumps(list(record.events()), indent=2))
        return
    for line in story.lines(record.events()):
        say(line)


def show_jobs(around: Surroundings, as_json: bool, job: str) -> None:
    """Print the jobs, or one, that were launched from here; those that have not ended are asked how they are."""
    records = [around.records.get(job)] if job else around.records.all()
    open_ones = [_as_of_today(record, around) for record in records if not record.last_seen()["ended"]]
    for record, result in fan_out(open_ones, ask_status, _JOBS_AT_ONCE):
        if isinstance(result, Exception):
            tell(f"job {record.name} could not be asked: {result}")
    if as_json:
        say(json.dumps([_job_as_json(record) for record in records], indent=2))
    elif not records:
        say("no job was launched from here yet; the first one: fab launch-per-node --follow")
    else:
        head = ["job", "state", "launcher", "nodes", "ranks", "launched", "script"]
        say(columns([head, *(_job_row(record) for record in records)]))


def _job_row(record: Record) -> list[str]:
    seen = record.last_seen()
    state = seen["state"] + (f" ({seen['code']})" if seen["code"] else "")
    launched = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created))
    script = " ".join(record.script)
    return [
        *(record.name, state, record.launcher, str(len(record.nodes) or record.min_nodes), str(record.world_size)),
        launched,
        script if len(script) <= 60 else script[:59] + "…",
    ]


def _job_as_json(record: Record) -> dict[str, Any]:
    seen = record.last_seen()
    return {
        "job": record.name,
        "job_id": record.job_id,
        "state": seen["state"],
        "exit_code": seen["code"],
        "ended": seen["ended"],
        "launcher": record.launcher,
        "runtime": record.runtime,
        "nodes": [node.label for node in record.nodes],
        "world_size": record.world_size,
        "created": record.created,
        "script": list(record.script),
    }


def remove(job: str, around: Surroundings) -> None:
    """Remove the record of a job that has ended, and its folders on its nodes.

    Raises
    ------
    UsageError
        The job has not ended.
    """
    if not job:
        raise UsageError("--remove needs the name of a job", "fab jobs lists them; then: fab jobs --remove NAME")
    record = _as_of_today(around.records.get(job), around)
    if (held := lock.holder(record.folder)) is not None:
        raise UsageError(f"job {job} is supervised ({lock.words(held)})", f"fab stop {job}")
    found = ask_status(record)
    silent = [each.node.label for each in found.nodes if each.state == "unreachable"]
    if silent:
        raise UsageError(
            f"{inventory.fold(silent)} cannot be asked whether job {record.name} has ended there",
            f"try again when that works; if it never will, delete the record by hand: {record.folder}",
        )
    if not found.has_ended:
        raise UsageError(f"job {record.name} has not ended", f"fab stop {record.name}")
    failed: dict[str, TorchfabError] = {}
    for attempt in [*around.records.earlier(record), record]:
        settled = replace(attempt, settings=record.settings)
        failed.update(runtimes.of(record.runtime).forget(settled))
    if failed:
        raise HostsFailedError(f"the job's folder is still on {len(failed)} nodes; its record was kept", failed)
    around.records.release(record.name)
    say(f"job {record.name}: record and logs removed")


# ---- logs and wait


def log_request(rank: str, lines: str, grep: str, follow: bool) -> dict[str, Any]:
    """Return what the nodes are asked for.

    Raises
    ------
    UsageError
        A flag's value is wrong.
    """
    if lines and lines != "all" and not (lines.isascii() and lines.isdigit()):
        raise UsageError(f"--lines is a number or all, got {lines!r}")
    try:
        re.compile(grep)
    except re.error as error:
        raise UsageError(f"--grep {grep!r} is no regular expression: {error}") from None
    ranks = list(inventory.parse_ranks(rank)) if rank else None
    count = None if lines == "all" else int(lines or DEFAULT_LINES)
    return {"follow": follow, "lines": count, "ranks": ranks, "grep": grep or None}


def show_logs(record: Record, request: Mapping[str, Any], folding: bool, stall_s: float) -> int:
    """Print a job's logs; return its exit code if followed to its end, else 0, or 1 if a node was missing."""
    beyond = [rank for rank in request["ranks"] or () if rank >= record.world_size]
    if beyond and not record.is_elastic:
        raise UsageError(f"job {record.name} has the ranks 0-{record.world_size - 1}, and no rank {beyond[0]}")
    watch = Watch(record, Printer(folding), retries=request["follow"], stall_s=stall_s)
    if not request["follow"]:
        return _show_past(watch, request)
    return _see_through(watch, request)


def _show_past(watch: Watch, request: Mapping[str, Any]) -> int:
    for event in runtimes.of(watch.record.runtime).follow(watch.record, request):
        watch._take(event)
        if watch.lost and len(watch.lost) + len(watch.ended) >= len(watch.record.nodes):
            break
    watch.printer.flush()
    return 1 if watch.lost else 0


def follow(record: Record, failure_grace_s: float, stall_s: float) -> int:
    """Print a job's logs from its start, see it to its end, and return its exit code."""
    request = log_request("", "all", "", follow=True)
    return _see_through(Watch(record, Printer(), failure_grace_s, stall_s=stall_s), request)


def wait(record: Record, failure_grace_s: float, stall_s: float) -> int:
    """Block until a job has ended; return its exit code."""
    return _see_through(Watch(record, Printer(), failure_grace_s, stall_s=stall_s), NO_LINES)


def _see_through(watch: Watch, request: Mapping[str, Any]) -> int:
    name = watch.record.name
    try:
        found = watch.run(request)
    except KeyboardInterrupt:
        watch.printer.flush()
        tell(f"\nthe job goes on; fab logs --follow {name} | fab status {name} | to end it: fab stop {name}")
        return 130
    if found.state != "succeeded" and (following := standing.next_attempt(watch.record)):
        tell(f"{name}: attempt {following.attempt}, launched by its supervisor")
        grace_s, stall_s = watch.failure_grace_s, watch.stall_s
        return _see_through(Watch(following, Printer(watch.printer.folding), grace_s, stall_s=stall_s), request)
    watch.record.remember(found.state, found.exit_code, found.has_ended)
    tell(_end_words(watch.record, found))
    return 1 if found.exit_code is None else found.exit_code


def _end_words(record: Record, found: status.JobStatus) -> str:
    if found.state == "succeeded":
        ends = [
            process["ended"] - node.skew_s for node in found.nodes for process in node.processes if process["ended"]
        ]
        seconds = max(ends, default=time.time()) - record.created
        return f"job {record.name} succeeded after {status.duration(seconds)}; its logs: fab logs {record.name}"
    if found.state == "stopped":
        return f"job {record.name} was stopped"
    code = f"exit code {found.exit_code}"
    next_words = f"fab why {record.name} | fab logs {record.name}{_rank_flag(found)}"
    return f"job {record.name} failed: {describe_failure(found)}; {code}; {next_words}"


# ---- attach


def attach_argv(record: Record, node: str, rank: str) -> tuple[str, ...]:
    """Return the command that attaches this terminal to a job.

    Raises
    ------
    UsageError
        The job has no such node or rank, or has ended there.
    """
    found = ask_status(record)
    chosen = _node_of_rank(found, rank) if rank else _node_named(record.name, found, node)
    here = next(each for each in found.nodes if each.node == chosen)
    if here.state == "unreachable":
        raise TorchfabError(f"{chosen.label} cannot be reached: {here.reason}")
    if here.state not in ("starting", "running"):
        raise UsageError(f"job {record.name} does not run on {chosen.label}: {here.state}", f"fab logs {record.name}")
    window = f"rank-{rank}" if rank and any(each["name"] == f"rank-{rank}" for each in here.processes) else ""
    argv: tuple[str, ...] = runtimes.of(record.runtime).attach_argv(record, chosen, window)
    return argv


def _node_named(job: str, found: status.JobStatus, name: str) -> Node:
    nodes = [each.node for each in found.nodes]
    for node in nodes:
        if name in ("", str(node.rank), node.host, node.label):
            return node
    if not nodes:
        raise UsageError(f"job {job} runs on no node: {found.state}", f"fab status {job}")
    labels = inventory.fold([node.label for node in nodes])
    raise UsageError(f"job {job} has no node {name!r}", f"its nodes: {labels}")


def _node_of_rank(found: status.JobStatus, rank: str) -> Node:
    for node in found.nodes:
        names = {each["name"] for each in node.processes} | {f"rank-{each['rank']}" for each in node.ranks}
        if f"rank-{rank}" in names:
            return node.node
    raise UsageError(f"no node runs rank {rank!r}", "fab status shows which ranks run, and where")


def attach(argv: Sequence[str]) -> None:
    """Become the command that attaches.

    Raises
    ------
    UsageError
        There is no terminal to attach.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("fab attach needs a terminal", "without one: fab logs --follow")
    sys.stdout.flush()
    os.execvp(argv[0], list(argv))


# ---- stop


def stop_launch(job: str, around: Surroundings) -> bool:
    """Ask the `fab` that is launching a job to take it back; say whether nothing of it is left to be stopped.

    Raises
    ------
    TorchfabError
        That `fab` runs on another machine, or does not come to an end.
    """
    launching = around.records.launching(job)
    if launching is None:
        return False
    pid, host = launching
    if host != socket.gethostname():
        raise UsageError(
            f"job {job} is being launched at this moment, on {host}", "press Ctrl-C there, or stop it later"
        )
    from torchfab.launch import STOP_SIGNAL

    tell(f"job {job} is being launched (fab, pid {pid}): asking for an end of that")
    os.kill(pid, STOP_SIGNAL)
    settings = around.settings
    deadline = time.monotonic() + settings.prepare_timeout_s + settings.start_timeout_s
    while around.records.launching(job):
        if time.monotonic() > deadline:
            raise TorchfabError(f"fab (pid {pid}) is still launching job {job}", f"fab stop {job} again")
        time.sleep(0.05)
    if (around.records.root / job / "record.json").exists():
        return False
    say(f"job {job}: its launch was taken back; nothing of it was left running")
    return True


def stop(record: Record, grace_s: float) -> int:
    """Stop a job and print what was done on each node; return 0 if it is proved that nothing is left, else 1.

    A supervisor is told first, and a restart that is under way is waited for: what it started is stopped as well.
    """
    with lock.stopping(record.folder):
        current = replace(Records(record.folder.parent).get(record.name), settings=record.settings)
        code = _stop(current, grace_s)
        return _stop_earlier(current, grace_s) or code


def _stop_earlier(record: Record, grace_s: float) -> int:
    """Stop what may be left of earlier attempts; return 0 if nothing is, else 1."""
    code = 0
    for attempt, hosts in story.left_behind(record.events()).items():
        for report in remains.stop(record, attempt, hosts, grace_s):
            host = report.node.label
            if report.error is None and not report.left:
                record.note("caught up", text=remains.words(report, attempt), attempt=attempt, hosts=[host])
                say(remains.words(report, attempt))
            else:
                code = 1
                tell(f"error: attempt {attempt} may still run on {host}: {report.error or report.left[0]}")
    return code


def _stop(record: Record, grace_s: float) -> int:
    reports = runtimes.of(record.runtime).stop(record, grace_s)
    groups: dict[str, list[str]] = {}
    failed: dict[str, TorchfabError] = {}
    for report in reports:
        if report.error is not None:
            failed[report.node.label] = report.error
        else:
            groups.setdefault(_stop_words(report), []).append(report.node.label)
    for words, hosts in groups.items():
        say(f"{inventory.fold(hosts)}: {words}")
    record.note("stop", grace_s=grace_s, unreachable=sorted(failed))
    if failed:
        error = HostsFailedError(f"{len(failed)} of {len(reports)} nodes could not be asked to stop", failed)
        tell("\n".join([f"error: {error}", *fold_reasons(error), f"  when they are back: fab stop {record.name}"]))
        return 1
    left = any(report.left for report in reports)
    if not left:
        found = ask_status(record)
        proof = f", no process of it is left on {len(found.nodes)} nodes" if found.nodes else ""
        say(f"job {record.name}: {found.state}{proof}")
    return 1 if left else 0


def _stop_words(report: Any) -> str:
    if report.words:
        return str(report.words)
    if report.left:
        return f"{len(report.left)} processes are left and cannot be killed: {', '.join(report.left[:3])}"
    if not report.asked:
        return "nothing of it was running"
    # Whole seconds, and commands without pids: so nodes that did the same fold into one line.
    count = "1 process" if report.asked == 1 else f"{report.asked} processes"
    return f"{count} ended within {math.ceil(report.seconds)} s{_killed_words(report.killed)}"


def _killed_words(killed: Sequence[str]) -> str:
    if not killed:
        return ""
    commands = dict.fromkeys(each.partition(" ")[2].strip("()") for each in killed)
    return f", {len(killed)} of them had to be killed: {', '.join(list(commands)[:3])}"
