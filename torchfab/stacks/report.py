"""The page of `fab stacks`, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torchfab.core.inventory import fold, fold_ranks
from torchfab.core.log_lines import clean
from torchfab.stacks import groups
from torchfab.stacks.groups import Group
from torchfab.stacks.model import Dump, Frame, NodeStacks, RankStack, Thread
from torchfab.stacks.refusals import explain

_FRAMES = 12  # of a stack, unless all are asked for
_NAMED = 4


def text(name: str, dump: Dump, everything: bool = False, exact: bool = False) -> str:
    """Return the page.

    Parameters
    ----------
    name : str
        The job's name.
    everything : bool
        Whether to show every frame, and the threads besides the main one. Default False.
    exact : bool
        As for `groups.group`.
    """
    found = groups.group([each for each in dump.running if each.threads], exact)
    parts = [f"job {name}: {summary(dump, found)}"]
    parts += ["\n".join(_group_lines(each, everything)) for each in found]
    if not dump.running and not dump.unheard:
        parts[0] += f"; how it ended: fab why {name}"
    last = [*_missing_lines(dump), *_ended_lines(dump), *_unheard_lines(dump), *_fix_lines(found)]
    whole = "\n\n".join([*parts, *(["\n".join(last)] if last else [])])
    return "\n".join(clean(line) for line in whole.split("\n"))  # a function may have any name


# ---- in one sentence


def summary(dump: Dump, found: Sequence[Group]) -> str:
    """Return who is odd, in one sentence: `rank 13 is in all_gather, 511 others wait in all_reduce`."""
    if not dump.running:
        return "no rank runs" + (" on the nodes that answered" if dump.unheard else "")
    if not found:
        return f"no stack of {_count(dump.running)} could be had"
    if len(found) == 1:
        every = found[0].ranks
        who = f"all {len(every)} ranks are" if len(every) > 1 else f"{_who(every)} is"
        return f"{who} {found[0].words}"
    odd, most = found[:-1], found[-1]
    clauses = [f"{_who(each.ranks)} {'is' if len(each.ranks) == 1 else 'are'} {each.words}" for each in odd[:3]]
    if len(odd) > 3:
        clauses.append(f"{sum(len(each.ranks) for each in odd[3:])} more in {len(odd) - 3} other places")
    others = len(most.ranks)
    verb = "wait" if most.waits else "are"
    if others == 1:
        return ", ".join([*clauses, f"{_who(most.ranks)} {'waits' if most.waits else 'is'} {most.words}"])
    return ", ".join([*clauses, f"{others} others {verb} {most.words}"])


def _who(ranks: Sequence[RankStack]) -> str:
    numbers = [each.rank for each in ranks if each.rank is not None]
    processes = sorted({each.process for each in ranks if each.rank is None})
    named = [f"rank{'s' if len(numbers) > 1 else ''} {fold_ranks(numbers)}"] if numbers else []
    named += [f"{each} on {fold(_hosts(ranks, each))}" for each in processes]
    return " and ".join(named)


def _hosts(ranks: Iterable[RankStack], process: str) -> list[str]:
    return list(dict.fromkeys(each.node.label for each in ranks if each.rank is None and each.process == process))


def _count(ranks: Sequence[RankStack]) -> str:
    return "1 rank" if len(ranks) == 1 else f"{len(ranks)} ranks"


# ---- a group


def _group_lines(group: Group, everything: bool) -> list[str]:
    hosts = fold(list(dict.fromkeys(each.node.label for each in group.ranks)))
    who = _who(group.ranks) + (f" ({len(group.ranks)})" if len(group.ranks) > 1 else "")
    where = "" if any(each.rank is None for each in group.ranks) else f" on {hosts}"
    lines = [f"{who}{where}: {group.words}", f"  {_process_words(group.ranks)}"]
    shown = group.ranks[0]
    placed = list(zip(shown.frames, _lines_of(group.ranks), strict=True))
    kept = placed if everything else [each for each in placed if not each[0].file.startswith("<frozen")][:_FRAMES]
    lines += _frame_lines([frame for frame, _ in kept], [numbers for _, numbers in kept])
    if len(kept) < len(placed):
        lines.append(f"    … {len(placed) - len(kept)} more of its frames: --all")
    return lines + (_thread_lines(shown) if everything else _threads_words(shown))


def _process_words(ranks: Sequence[RankStack]) -> str:
    """Return pids, states and load of processes, in one line."""
    pids = [f"{each.pid}" for each in ranks[:_NAMED]]
    more = f", and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    states = "/".join(sorted({each.state for each in ranks}))
    low, high = min(each.cpu for each in ranks), max(each.cpu for each in ranks)
    load = f"{high:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low:.0%} to {high:.0%}"
    waits = sorted({each.waits_in for each in ranks if each.waits_in})
    kernel = f", in the kernel: {', '.join(waits[:3])}" if waits else ""
    by = sorted({each.by for each in ranks} - {"py-spy"})
    signal = f", stack by {'/'.join(by)}" if by else ""
    return f"pid {', '.join(pids)}{more}; state {states}, CPU {load}{kernel}{signal}"


def _lines_of(ranks: Sequence[RankStack]) -> list[set[int]]:
    """Return, for each frame of the first rank, the lines in which the others are in it; where their stacks align."""
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
        # A C++ template's name can be some thousand characters long.
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


def _threads_words(stack: RankStack) -> list[str]:
    others = stack.threads[1:]
    if not others:
        return []
    active = [thread for thread in others if thread.active]
    words = [f"{len(active)} active ({_names(active)})"] if active else []
    idle = [thread for thread in others if not thread.active]
    words += [f"{len(idle)} idle ({_names(idle)})"] if idle else []
    return [f"  threads besides the main one: {', '.join(words)}; --all shows them"]


def _names(threads: Sequence[Thread]) -> str:
    names = list(dict.fromkeys(thread.name for thread in threads))
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


# ---- what there is no stack of


def _missing_lines(dump: Dump) -> list[str]:
    """Return one paragraph per reason, with the ranks that have it."""
    alike: dict[tuple[str, str], list[RankStack]] = {}
    for node, stack in _missing(dump):
        alike.setdefault(explain(stack, node.rights), []).append(stack)
    lines = []
    for (what, fix), ranks in alike.items():
        hosts = fold(list(dict.fromkeys(each.node.label for each in ranks)))
        state = groups.STATE_WORDS.get(ranks[0].state, "")
        lines.append(f"no stack of {_who(ranks)} ({hosts}): {state + ': ' if state else ''}{what}")
        lines += [f"  {_process_words(ranks)}", *([f"  fix: {fix}"] if fix else [])]
    return lines


def _missing(dump: Dump) -> list[tuple[NodeStacks, RankStack]]:
    return [(node, each) for node in dump.nodes for each in node.ranks if not each.ended and not each.threads]


def _ended_lines(dump: Dump) -> list[str]:
    ends: dict[str, list[RankStack]] = {}
    for each in dump.ended:
        ends.setdefault("" if each.code is None else f" with code {each.code}", []).append(each)
    return [f"{_who(ranks)} {'has' if len(ranks) == 1 else 'have'} ended{how}" for how, ranks in ends.items()]


def _unheard_lines(dump: Dump) -> list[str]:
    alike: dict[str, list[str]] = {}
    for host, error in dump.unheard.items():
        alike.setdefault(str(error), []).append(host)
    return [f"{fold(hosts)}: not asked: {reason}".replace("\n", "\n  ") for reason, hosts in alike.items()]


def _fix_lines(found: Sequence[Group]) -> list[str]:
    lines = []
    for group in found:
        for each in group.ranks[:_NAMED] if group.state == "T" else ():
            who = f"rank {each.rank}" if each.rank is not None else each.process
            lines.append(f"to let {who} go on: kill -CONT {each.pid}, on {each.node.label}")
    return lines


# ---- for machines


def as_json(name: str, dump: Dump, exact: bool = False) -> dict[str, Any]:
    """Return the same for machines, with all threads of all ranks."""
    found = groups.group([each for each in dump.running if each.threads], exact)
    return {
        "job": name,
        "summary": summary(dump, found),
        "groups": [_group_as_json(each) for each in found],
        "ranks": [_rank_as_json(node, each) for node in dump.nodes for each in node.ranks],
        "nodes": [{"host": node.node.label, "py_spy": node.spy, "rights": dict(node.rights)} for node in dump.nodes],
        "unheard": {host: error.message for host, error in dump.unheard.items()},
    }


def _group_as_json(group: Group) -> dict[str, Any]:
    own = group.meaning.own
    return {
        "ranks": [each.rank for each in group.ranks],
        "hosts": list(dict.fromkeys(each.node.label for each in group.ranks)),
        "doing": group.words,
        "waits": group.waits,
        "state": group.state or None,
        "own_frame": vars(own) if own else None,
        "frames": [vars(frame) for frame in group.ranks[0].frames],
    }


def _rank_as_json(node: NodeStacks, each: RankStack) -> dict[str, Any]:
    names = ("process", "rank", "pid", "state", "cpu", "waits_in", "by", "ended", "code")
    missing = not each.ended and not each.threads
    what, fix = explain(each, node.rights) if missing else ("", "")
    threads = [
        {"name": thread.name, "active": thread.active, "frames": [vars(frame) for frame in thread.frames]}
        for thread in each.threads
    ]
    told = {name: getattr(each, name) for name in names}
    return {"host": each.node.label, **told, "problem": what or None, "fix": fix or None, "threads": threads}
