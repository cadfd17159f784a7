"""Jobs that failed, each with the cause, the first rank and the words that `fab why` must name.

    python -m tests.recorded.corpus    # precision and recall of each kind

The logs are written anew after public reports (`from:` names them); texts that programs print are as they print them.
Those of `known` were at hand while the signatures were written. Those of `unseen` to `unseen9` came afterwards,
and ran once before anything was changed for them: docs/reliability.md has the figures of these runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.why.evidence_factory import LAUNCHED, diagnose_nodes, log, node, process, rank
from torchfab.why.diagnosis import Diagnosis
from torchfab.why.evidence import NodeEvidence

FOLDER = Path(__file__).parent / "jobs"
BATCHES = (
    "known",
    "unseen",
    "unseen2",
    "unseen3",
    "unseen4",
    "unseen5",
    "unseen6",
    "unseen7",
    "unseen8",
    "unseen9",
    "unseen10",
    "reports",
)
Part = tuple[str, Mapping[str, str], str]


@dataclass(frozen=True)
class Case:
    """A job.

    Parameters
    ----------
    name, origin : str
        Its name, and the framework and report that it follows.
    kind : str
        The expected kind.
    first : str
        The rank that fails first; `any` where all fail alike.
    words : str
        What the cause or the exception must contain.
    parts : tuple
        Of its logs and facts: what it is, its attributes, its text.
    """

    name: str
    origin: str
    kind: str
    first: str
    words: str
    parts: tuple[Part, ...]

    def diagnose(self) -> Diagnosis:
        """Return what `fab why` finds."""
        return diagnose_nodes(*_nodes(self.parts))

    def is_named(self, found: Diagnosis) -> bool:
        """Check whether the expected words are named, as the cause or as an exception of the traceback."""
        exceptions = [member.exception for member in found.traceback.members] if found.traceback else []
        return any(self.words in text for text in (found.cause.words, *exceptions))

    def is_first(self, found: Diagnosis) -> bool:
        """Check whether the expected rank is named."""
        return self.first == "any" or (found.first is not None and str(found.first.rank) == self.first)

    def is_right(self, found: Diagnosis) -> bool:
        """Check whether kind, rank and words are right."""
        return found.cause.kind.name.lower() == self.kind and self.is_first(found) and self.is_named(found)


def cases(batch: str) -> list[Case]:
    """Return the jobs of one batch of the corpus."""
    return [case for path in sorted((FOLDER / batch).glob("*.txt")) for case in _parse(path.read_bytes().decode())]


def _parse(text: str) -> Iterator[Case]:
    for block in ("\n" + text).split("\n@@@ ")[1:]:
        head, *parts = ("\n" + block).split("\n@-- ")
        name, origin, expected = head.strip().split("\n")
        want, _, words = expected.removeprefix("expect: ").partition(" | ")
        kind, first = want.split()
        yield Case(name, origin.removeprefix("from: "), kind, first, words, tuple(map(_part, parts)))


def _part(text: str) -> Part:
    line, _, content = text.partition("\n")
    kind, *attributes = line.split(" ")
    return kind, dict(each.split("=", 1) for each in attributes), f"{content}\n" if content else ""


def _nodes(parts: Sequence[Part]) -> list[NodeEvidence]:
    numbers = sorted({int(attributes["node"]) for _, attributes, _ in parts})
    return [_node(number, [each for each in parts if int(each[1]["node"]) == number]) for number in numbers]


def _node(number: int, parts: Sequence[Part]) -> NodeEvidence:
    more: dict[str, Any] = {}
    ranks: list[Any] = []
    logs: list[Any] = []
    kernel: list[Any] = []
    disks: list[Any] = []
    for kind, attributes, text in parts:
        at = LAUNCHED + float(attributes.get("ended", attributes.get("time", 0)))
        if kind == "rank":
            ranks.append(rank(int(attributes["rank"]), int(attributes["exit"]), at, local_rank=len(ranks)))
            logs.append(log(int(attributes["rank"]), text, LAUNCHED + float(attributes["written"])))
        elif kind == "agent":
            logs.append(log("agent", text, at, path="output.log"))
        elif kind == "kernel":
            kernel.append([at, text.strip()])
        elif "disk" in attributes:
            free_files = int(attributes["free_files"]) if "free_files" in attributes else None
            sizes = {"free": int(attributes["free"]), "size": int(attributes["size"]), "free_files": free_files}
            disks.append({"path": attributes["disk"], **sizes})
        else:
            more["gpus"] = int(attributes["gpus"])
    state = "failed" if any(each["code"] for each in ranks) else "succeeded"
    ended = max((each["ended"] for each in ranks), default=LAUNCHED) + 0.5
    kept = {"kernel": {"lines": kernel, "unread": ""}, "disks": disks, **more}
    return node(number, [process(state, *ranks, ended=ended)], logs, **kept)


# ---- figures


def figures(batch: str) -> list[str]:
    """Return precision and recall of each kind, and what was missed, as lines."""
    results = [(case, case.diagnose()) for case in cases(batch)]
    kinds = sorted({case.kind for case, _ in results} | {found.cause.kind.name.lower() for _, found in results})
    lines = [f"{batch}: {len(results)} jobs", "kind      jobs  precision  recall"]
    for kind in kinds:
        wanted = [found for case, found in results if case.kind == kind]
        named = [case for case, found in results if found.cause.kind.name.lower() == kind]
        right = sum(case.kind == kind for case in named)
        precision = f"{right}/{len(named)}" if named else "-"
        lines.append(f"{kind:<9} {len(wanted):>4}  {precision:>9}  {f'{right}/{len(wanted)}':>6}")
    first = sum(case.is_first(found) for case, found in results)
    named_words = sum(case.is_named(found) for case, found in results)
    whole = sum(case.is_right(found) for case, found in results)
    lines.append(
        f"first rank {first}/{len(results)}, cause named {named_words}/{len(results)}, all three right {whole}"
    )
    return lines


def misses(batch: str) -> list[str]:
    """Return the jobs of which kind, rank or words are wrong, one line each."""
    found = [(case, case.diagnose()) for case in cases(batch)]
    return [
        f"{case.name}: expected {case.kind} {case.first} {case.words!r}, found {each.cause.kind.name.lower()} "
        f"{each.first.rank if each.first else None} {each.cause.words[:120]!r}"
        for case, each in found
        if not case.is_right(each)
    ]


if __name__ == "__main__":
    for each in BATCHES:
        sys.stdout.write("\n".join([*figures(each), *(f"  {line}" for line in misses(each)), "", ""]))
