"""What a stack says in words: which collective it waits in, whether it waits for data, sleeps, saves. A small table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torchfab.stacks.model import Frame

_COLLECTIVES = (
    "all_reduce|all_gather|reduce_scatter|broadcast|all_to_all|reduce|gather|scatter|barrier|monitored_barrier|send|recv"
    "|batch_isend_irecv"
)


@dataclass(frozen=True)
class Signature:
    """What frames of some files and functions mean.

    Parameters
    ----------
    file, function : str
        Regular expressions: the first finds something in the file's path, the second is the whole function's name.
    words : str
        What it means, after `is`; `{function}` is the function's name.
    waits : bool
        Whether one can stay there for ever.
    for_ranks : bool
        Whether it is other ranks that are waited for: the cause is with them.
    """

    file: str
    function: str
    words: str
    waits: bool = True
    for_ranks: bool = False


_C10D = r"torch/distributed/distributed_c10d\.py$"
# The first sign that finds a frame wins, and of a sign the innermost frame.
SIGNATURES = (
    Signature(r"/(pdb|bdb)\.py$", r".*", "in the debugger (pdb), which waits for input"),
    Signature(_C10D, r"init_process_group|new_group|split_group", "in {function}", for_ranks=True),
    Signature(r"torch/distributed/rendezvous\.py$", r".*", "in the rendezvous of init_process_group", for_ranks=True),
    Signature(r"torch/distributed/elastic/rendezvous/", r".*", "in the rendezvous, for other nodes", for_ranks=True),
    Signature(_C10D, rf"_?({_COLLECTIVES})(_.*)?", "in {function}", for_ranks=True),
    Signature(r"torch/distributed/_functional_collectives\.py$", r".*", "in {function} (functional)", for_ranks=True),
    Signature(r"torch/distributed/nn/functional\.py$", r".*", "in {function}", for_ranks=True),
    Signature(
        r"torch/distributed/checkpoint/", r".*(save|load|write|read).*", "in a distributed checkpoint ({function})"
    ),
    Signature(r"torch/serialization\.py$", r"(_?save|_legacy_save)", "in torch.save (a checkpoint?)"),
    Signature(r"torch/serialization\.py$", r"(_?load|_legacy_load)", "in torch.load"),
    Signature(r"torch/utils/data/dataloader\.py$", r".*", "at the DataLoader, for a batch"),
    Signature(r"torch/cuda/(__init__|streams)\.py$", r"(synchronize|wait|query)", "in cuda.{function}, for the GPU"),
    Signature(r"torch/optim/(?!lr_scheduler)", r".*", "in the optimizer's step", False),
    Signature(r"torch/(_tensor|autograd/__init__)\.py$", r"backward|_engine_run_backward", "in backward"),
    Signature(r"torch/(_inductor|_dynamo|_functorch)/", r".*", "in torch.compile", False),
    Signature(
        r"torch/nn/parallel/distributed\.py$", r"__init__|_(sync|verify)_.*", "in DDP's {function}", for_ranks=True
    ),
    Signature(r"torch/distributed/elastic/agent/", r".*", "the launcher that watches its ranks", False),
    Signature(
        r"/(selectors|subprocess)\.py$", r"(wait|communicate|select|_try_wait)", "in {function}, for another process"
    ),
    Signature(
        r"/(queue|threading)\.py$", r"(get|put|wait|join|acquire|_wait_for_tstate_lock)", "in {function}, for a thread"
    ),
    Signature(r"/(ssl|socket|http/client)\.py$", r".*", "on the network ({function})"),
    Signature(r"<frozen importlib", r".*", "in an import", False),
)
# What the text of the innermost frame's line says, where no sign was found: calls into C have no frame.
_CALLS = (
    (re.compile(r"\b(?:time\.)?sleep\("), "in time.sleep"),
    (re.compile(r"\binput\("), "in input(), which waits for a terminal"),
    (re.compile(r"\.(item|cpu|tolist|synchronize)\("), "in .{0}(), which waits for the device"),
    (re.compile(r"\.wait\("), "in wait()"),
    (re.compile(r"\b(all_reduce|all_gather\w*|broadcast|barrier|reduce_scatter\w*)\("), "in {0}"),
)


@dataclass(frozen=True)
class Meaning:
    """What a stack says.

    Parameters
    ----------
    words : str
        After `is`: `in all_reduce`, `in time.sleep`; empty where nothing is recognised.
    waits : bool
        Whether it may wait for ever there.
    for_ranks : bool
        Whether it waits for other ranks.
    depth : int
        How many of the innermost frames are but details of that.
    own : Frame, optional
        The innermost frame of the user's code.
    """

    words: str
    waits: bool
    for_ranks: bool
    depth: int
    own: Frame | None


def of(frames: Sequence[Frame]) -> Meaning:
    """Return what a stack says; the innermost frame comes first."""
    own = next((frame for frame in frames if frame.is_own), None)
    for sign in SIGNATURES:
        for depth, frame in enumerate(frames):
            if re.search(sign.file, frame.file) and re.fullmatch(sign.function, frame.name):
                outermost = _outermost(sign, frames, depth)
                function = frames[outermost].name.strip("_")
                return Meaning(sign.words.format(function=function), sign.waits, sign.for_ranks, outermost, own)
    python = [frame for frame in frames if not frame.is_native]
    for pattern, words in _CALLS if python else ():
        match = pattern.search(python[0].source)
        if match:
            return Meaning(words.format(*match.groups()), True, False, 0, own)
    return Meaning("", False, False, 0, own)


def _outermost(sign: Signature, frames: Sequence[Frame], depth: int) -> int:
    """Return the outermost frame with this sign before the user's code: what the user called, above its helpers."""
    found = depth
    for index in range(depth + 1, len(frames)):
        frame = frames[index]
        if frame.is_own:
            break
        if re.search(sign.file, frame.file) and re.fullmatch(sign.function, frame.name):
            found = index
    return found
