"""Render the output of `fab stacks`: human-readable text, and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torchfab.collectives.align import find_verdicts
from torchfab.collectives.report import verdict_as_json
from torchfab.core.errors import failed_as_json
from torchfab.core.format import plural
from torchfab.core.inventory import fold, fold_ranks
from torchfab.core.log_lines import strip_controls
from torchfab.stacks import groups
from torchfab.stacks.groups import Group
from torchfab.stacks.model import Frame, NodeStacks, RankStack, StackDump, Thread
from torchfab.stacks.refusals import explain

_MAX_FRAMES = 12  # of a stack, unless all are requested
_MAX_NAMES = 4


def render(name: str, dump: StackDump, everything: bool = False, exact: bool = False) -> str:
    """Return the stacks of a job as human-readable text.

    Parameters
    ----------
    name : str
        Name of the job.
    dump : StackDump
        Its stacks.
    everything : bool
        Whether to show every frame and all threads. Default False.
    exact : bool
        As for `groups.group`. Default False.

    Returns
    -------
    str
        Several lines, without terminal control sequences.
    """
    found = groups.group([each for each in dump.running if each.threads], exact)
    parts = [f"job {name}: {summary(dump, found)}"]
    parts += ["\n".join(lines)] if (lines := verdict_lines(dump)) else []
    parts += ["\n".join(_group_lines(each, everything)) for each in found]
    if not dump.running and not dump.unreachable:
        parts[0] += f"; how it ended: fab why {name}"
    last = [*_missing_lines(dump), *_ended_lines(dump), *_unreachable_lines(dump), *_resume_lines(found)]
    whole = "\n\n".join([*parts, *(["\n".join(last)] if last else [])])
    return "\n".join(
        strip_controls(line) for line in whole.split("\n")
    )  # a function name may contain control characters


# ---- summary


def summary(dump: StackDump, found: Sequence[Group]) -> str:
    """Summarise in one sentence: `rank 13 is in all_gather, 511 others wait in all_reduce`.

    Parameters
    ----------
    dump : StackDump
        The stacks of a job.
    found : sequence of Group
        The groups of its ranks, the odd ones first.

    Returns
    -------
    str
        Without a full stop.
    """
    if not dump.running:
        return "no rank runs" + (" on the nodes that answered" if dump.unreachable else "")
    if not found:
        return f"no stack of {_count(dump.running)} is available"
    if len(found) == 1:
        ranks = found[0].ranks
        subject = f"all {len(ranks)} ranks are" if len(ranks) > 1 else f"{_describe_ranks(ranks)} is"
        return f"{subject} {found[0].activity}"
    odd, most = found[:-1], found[-1]
    clauses = [
        f"{_describe_ranks(each.ranks)} {'is' if len(each.ranks) == 1 else 'are'} {each.activity}" for each in odd[:3]
    ]
    if len(odd) > 3:
        clauses.append(f"{sum(len(each.ranks) for each in odd[3:])} more in {len(odd) - 3} other places")
    others = len(most.ranks)
    verb = "wait" if most.waits else "are"
    if others == 1:
        return ", ".join([*clauses, f"{_describe_ranks(most.ranks)} {'waits' if most.waits else 'is'} {most.activity}"])
    return ", ".join([*clauses, f"{others} others {verb} {most.activity}"])


def verdict_lines(dump: StackDump) -> list[str]:
    """Return the findings about the collectives of a job, one line each.

    Parameters
    ----------
    dump : StackDump
        Its stacks.

    Returns
    -------
    list of str
        Empty if no rank waits, or nothing is known.
    """
    return [strip_controls(f"collectives: {each.words}") for each in find_verdicts(dump.collectives)]


def _describe_ranks(ranks: Sequence[RankStack]) -> str:
    numbers = [each.rank for each in ranks if each.rank is not None]
    processes = sorted({each.process for each in ranks if each.rank is None})
    named = [f"rank{'s' if len(numbers) > 1 else ''} {fold_ranks(numbers)}"] if numbers else []
    named += [f"{each} on {fold(_hosts(ranks, each))}" for each in processes]
    return " and ".join(named)


def _hosts(ranks: Iterable[RankStack], process: str) -> list[str]:
    return list(dict.fromkeys(each.node.label for each in ranks if each.rank is None and each.process == process))


def _count(ranks: Sequence[RankStack]) -> str:
    return plural(len(ranks), "rank")


# ---- a group


def _group_lines(group: Group, everything: bool) -> list[str]:
    hosts = fold(list(dict.fromkeys(each.node.label for each in group.ranks)))
    ranks = _describe_ranks(group.ranks) + (f" ({len(group.ranks)})" if len(group.ranks) > 1 else "")
    where = "" if any(each.rank is None for each in group.ranks) else f" on {hosts}"
    lines = [f"{ranks}{where}: {group.activity}", f"  {_describe_processes(group.ranks)}"]
    shown = group.ranks[0]
    placed = list(zip(shown.frames, _line_numbers(group.ranks), strict=True))
    kept = placed if everything else [each for each in placed if not each[0].file.startswith("<frozen")][:_MAX_FRAMES]
    lines += _frame_lines([frame for frame, _ in kept], [numbers for _, numbers in kept])
    if len(kept) < len(placed):
        lines.append(f"    … {len(placed) - len(kept)} more of its frames: --all")
    return lines + (_thread_lines(shown) if everything else _summarize_threads(shown))


def _describe_processes(ranks: Sequence[RankStack]) -> str:
    """Return pids, states and CPU usage of processes, in one line."""
    pids = [f"{each.pid}" for each in ranks[:_MAX_NAMES]]
    more = f", and {len(ranks) - _MAX_NAMES} more" if len(ranks) > _MAX_NAMES else ""
    states = "/".join(sorted({each.state for each in ranks}))
    low, high = min(each.cpu for each in ranks), max(each.cpu for each in ranks)
    load = f"{high:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low:.0%} to {high:.0%}"
    waits = sorted({each.waits_in for each in ranks if each.waits_in})
    kernel = f", in the kernel: {', '.join(waits[:3])}" if waits else ""
    by = sorted({each.by for each in ranks} - {"py-spy"})
    signal = f", stack by {'/'.join(by)}" if by else ""
    return f"pid {', '.join(pids)}{more}; state {states}, CPU {load}{kernel}{signal}"


def _line_numbers(ranks: Sequence[RankStack]) -> list[set[int]]:
    """Return the line numbers of all ranks for each frame of the first rank; ranks with other functions are ignored."""
    first = [frame.name for frame in ranks[0].frames]
    alike = [each.frames for each in ranks if [frame.name for frame in each.frames] == first]
    return [{frames[index].line for frames in alike} for index in range(len(first))]


def _frame_lines(frames: Sequence[Frame], lines: Sequence[set[int]] = ()) -> list[str]:
    shown = []
    for index, frame in enumerate(frames):
        numbers = sorted(lines[index]) if index < len(lines) else [frame.line]
        where = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        place = frame.short_file if frame.is_native else f"{frame.short_file}:{where}"
        source = f"   {frame.source}" if frame.source and frame.is_own else ""
        # The name of a C++ template can have thousands of characters.
        name = frame.function.replace("\n", " ")
        name = name if len(name) <= 100 else name[:99] + "…"
        shown.append(f"  {'>' if frame.is_own else ' '} {name} ({place}){source}")
    return shown


def _thread_lines(stack: RankStack) -> list[str]:
    lines = []
    for thread in stack.threads[1:]:
        lines.append(f"  thread {thread.name} of pid {stack.pid}{' (active)' if thread.active else ''}")
        lines += [f"  {line}" for line in _frame_lines(thread.frames)]
    return lines


def _summarize_threads(stack: RankStack) -> list[str]:
    others = stack.threads[1:]
    if not others:
        return []
    active = [thread for thread in others if thread.active]
    counts = [f"{len(active)} active ({_thread_names(active)})"] if active else []
    idle = [thread for thread in others if not thread.active]
    counts += [f"{len(idle)} idle ({_thread_names(idle)})"] if idle else []
    return [f"  threads besides the main one: {', '.join(counts)}; --all shows them"]


def _thread_names(threads: Sequence[Thread]) -> str:
    names = list(dict.fromkeys(thread.name for thread in threads))
    return ", ".join(names[:_MAX_NAMES]) + (", …" if len(names) > _MAX_NAMES else "")


# ---- ranks without a stack


def _missing_lines(dump: StackDump) -> list[str]:
    """Return one paragraph for each reason, with its ranks."""
    alike: dict[tuple[str, str], list[RankStack]] = {}
    for node, stack in _without_stack(dump):
        alike.setdefault(explain(stack, node.rights), []).append(stack)
    lines = []
    for (reason, fix), ranks in alike.items():
        hosts = fold(list(dict.fromkeys(each.node.label for each in ranks)))
        state = groups.STATE_NAMES.get(ranks[0].state, "")
        lines.append(f"no stack of {_describe_ranks(ranks)} ({hosts}): {state + ': ' if state else ''}{reason}")
        lines += [f"  {_describe_processes(ranks)}", *([f"  fix: {fix}"] if fix else [])]
    return lines


def _without_stack(dump: StackDump) -> list[tuple[NodeStacks, RankStack]]:
    return [(node, each) for node in dump.nodes for each in node.ranks if not each.ended and not each.threads]


def _ended_lines(dump: StackDump) -> list[str]:
    ends: dict[str, list[RankStack]] = {}
    for each in dump.ended:
        ends.setdefault("" if each.code is None else f" with code {each.code}", []).append(each)
    return [
        f"{_describe_ranks(ranks)} {'has' if len(ranks) == 1 else 'have'} ended{how}" for how, ranks in ends.items()
    ]


def _unreachable_lines(dump: StackDump) -> list[str]:
    alike: dict[str, list[str]] = {}
    for host, error in dump.unreachable.items():
        alike.setdefault(str(error), []).append(host)
    return [f"{fold(hosts)}: not asked: {reason}".replace("\n", "\n  ") for reason, hosts in alike.items()]


def _resume_lines(found: Sequence[Group]) -> list[str]:
    lines = []
    for group in found:
        for each in group.ranks[:_MAX_NAMES] if group.state == "T" else ():
            label = f"rank {each.rank}" if each.rank is not None else each.process
            lines.append(f"to let {label} go on: kill -CONT {each.pid}, on {each.node.label}")
    return lines


# ---- JSON


def as_json(name: str, dump: StackDump, exact: bool = False) -> dict[str, Any]:
    """Return the stacks of a job as JSON values, with all threads of all ranks.

    Parameters
    ----------
    name : str
        Name of the job.
    dump : StackDump
        Its stacks.
    exact : bool
        As for `groups.group`. Default False.

    Returns
    -------
    dict
        As `fab stacks --json` prints it.
    """
    found = groups.group([each for each in dump.running if each.threads], exact)
    return {
        "job": name,
        "summary": summary(dump, found),
        "collectives": [verdict_as_json(each) for each in find_verdicts(dump.collectives)],
        "groups": [_group_as_json(each) for each in found],
        "ranks": [_rank_as_json(node, each) for node in dump.nodes for each in node.ranks],
        "nodes": [{"host": node.node.label, "py_spy": node.py_spy, "rights": dict(node.rights)} for node in dump.nodes],
        "failed": failed_as_json(dump.unreachable),
    }


def _group_as_json(group: Group) -> dict[str, Any]:
    own = group.meaning.own
    return {
        "ranks": [each.rank for each in group.ranks],
        "hosts": list(dict.fromkeys(each.node.label for each in group.ranks)),
        "doing": group.activity,
        "waits": group.waits,
        "state": group.state or None,
        "own_frame": vars(own) if own else None,
        "frames": [vars(frame) for frame in group.ranks[0].frames],
    }


def _rank_as_json(node: NodeStacks, each: RankStack) -> dict[str, Any]:
    names = ("process", "rank", "pid", "state", "cpu", "waits_in", "by", "ended", "code")
    missing = not each.ended and not each.threads
    reason, fix = explain(each, node.rights) if missing else ("", "")
    threads = [
        {"name": thread.name, "active": thread.active, "frames": [vars(frame) for frame in thread.frames]}
        for thread in each.threads
    ]
    fields = {name: getattr(each, name) for name in names}
    return {"host": each.node.label, **fields, "problem": reason or None, "fix": fix or None, "threads": threads}
