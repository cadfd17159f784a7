"""Detect from repeated listings of a job's files when a checkpoint is complete, and describe it. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torchfab.core import inventory
from torchfab.core.format import format_bytes, plural
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.transport.messages.job import CheckpointAnswer

# A checkpoint of several files has gaps between them, in which none is open.
SETTLED_S = 2.0
_STEP = re.compile(
    r"(?:^|[^a-z])(?:global_?step|step|checkpoint|ckpt|iter|iteration|update)s?[-_=.]?0*(\d{1,12})(?!\d)", re.IGNORECASE
)


@dataclass(frozen=True)
class SavedFile:
    """A file that has changed since the save was requested.

    Parameters
    ----------
    host : str
        The host; a file that several hosts share is counted once, for the first.
    path : str
        Its path, relative to the job's working directory if it is in that directory.
    within : str
        Its path within the folder of checkpoints.
    size : int
        In bytes.
    after_s : float
        Time of its last change, in seconds after the first listing.
    whole : bool
        Whether it has its final name, and no rank has it open for writing.
    """

    host: str
    path: str
    within: str
    size: int
    after_s: float
    whole: bool

    @property
    def step(self) -> int | None:
        """The training step in its path: `step-00000120.pt`, `checkpoint-120/model.pt`; None if there is none."""
        found = _STEP.findall(self.within)
        return int(found[-1]) if found else None


class CheckpointSave:
    """The progress of a requested save.

    Parameters
    ----------
    first : Mapping of Node to CheckpointAnswer
        The answers of the hosts before the request.
    """

    def __init__(self, first: Mapping[Node, CheckpointAnswer]) -> None:
        self.first = dict(first)
        self.files: tuple[SavedFile, ...] = ()
        self.changed_s = 0.0  # when the files were last seen to change
        self.logged_step: int | None = None
        self.running = self.ranks = sum(answer.running for answer in first.values())

    @property
    def folders(self) -> list[str]:
        """The folders of checkpoints, on any host."""
        return sorted({root for answer in self.first.values() for root in answer.clocks})

    @property
    def requests(self) -> dict[int, Mapping[str, Any]]:
        """The next requests, by node rank: to the hosts that have such a folder."""
        return {
            node.rank: {"folders": [], "since": dict(answer.clocks), "busy": answer.busy}
            for node, answer in self.first.items()
            if answer.clocks
        }

    def feed(self, answers: Mapping[Node, CheckpointAnswer], now_s: float) -> None:
        """Add the answers of the hosts.

        Parameters
        ----------
        answers : Mapping of Node to CheckpointAnswer
            The answers of all hosts in `requests`.
        now_s : float
            Time of the answers, by a monotonic clock, in seconds.
        """
        found: dict[tuple[Any, ...], SavedFile] = {}
        for node, answer in sorted(answers.items(), key=lambda item: item[0].rank):
            for each in answer.files:
                key = (each.path, each.size, each.changed)
                found.setdefault(key, _saved_file(node, each, self.first[node]))
        files = tuple(found.values())
        if files != self.files:
            self.files, self.changed_s = files, now_s
        self.running = sum(answer.running for answer in answers.values())
        self.logged_step = max((each.step for each in answers.values() if each.step is not None), default=None)

    def is_whole(self, now_s: float) -> bool:
        """Return whether there is a complete checkpoint that has not changed for 2 s.

        Parameters
        ----------
        now_s : float
            The current time, by the clock of `feed`, in seconds.

        Returns
        -------
        bool
        """
        return bool(self.files) and not self.unfinished and now_s - self.changed_s >= SETTLED_S

    @property
    def unfinished(self) -> list[SavedFile]:
        """The files that are not whole."""
        return [each for each in self.files if not each.whole]


def _saved_file(node: Node, each: Any, first: CheckpointAnswer) -> SavedFile:
    path = each.path.removeprefix(f"{first.cwd}/")
    after_s = max(0.0, float(each.changed) - float(first.clocks.get(each.root, each.changed)))
    within = each.path.removeprefix(f"{each.root}/")
    return SavedFile(node.label, path, within, int(each.size), after_s, each.whole)


def describe(files: Sequence[SavedFile], logged_step: int | None = None) -> str:
    """Describe a whole checkpoint.

    Parameters
    ----------
    files : sequence of SavedFile
        At least one.
    logged_step : int, optional
        The last step in the logs, for files whose names have none. Default None: not known.

    Returns
    -------
    str
        `checkpoint of step 120 on node1: ckpt/step-120.pt, 1.2 GiB, after 3.1 s`.
    """
    step = max((each.step for each in files if each.step is not None), default=None)
    what = "checkpoint"
    if step is not None:
        what = f"checkpoint of step {step}"
    elif logged_step is not None:
        what = f"checkpoint at about step {logged_step} (the last one logged)"
    hosts = inventory.fold(list(dict.fromkeys(each.host for each in files)))
    size, after_s = sum(each.size for each in files), max(each.after_s for each in files)
    return f"{what} on {hosts}: {_place(files)}, {format_bytes(size)}, after {after_s:.1f} s"


def _place(files: Sequence[SavedFile]) -> str:
    paths = sorted({each.path for each in files})
    if len(paths) == 1:
        return paths[0]
    first, last = paths[0].split("/")[:-1], paths[-1].split("/")[:-1]
    # What the first and the last have in common, all have.
    shared = [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
    return f"{'/'.join(shared) or '.'}/ ({plural(len(paths), 'file')})"
