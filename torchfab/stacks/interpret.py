"""Interpret a stack: the collective that it waits in, or that it waits for data, sleeps or saves."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torchfab.core.lazy_dataclass import dataclass
from torchfab.stacks.model import Frame

_COLLECTIVES = (
    "all_reduce|all_gather|reduce_scatter|broadcast|all_to_all|reduce|gather|scatter|barrier|monitored_barrier|send|recv"
    "|batch_isend_irecv"
)


@dataclass(frozen=True)
class Signature:
    """A pattern for a frame, and the meaning of such a frame.

    Parameters
    ----------
    file, function : str
        Regular expressions: `file` is searched in the path, `function` must match the whole name.
    activity : str
        The activity of the rank, as the text after `rank 3 is`; `{function}` is replaced by the function's name.
    waits : bool
        Whether the rank may stay there indefinitely. Default True.
    for_ranks : bool
        Whether it waits for other ranks, which are then the likely cause. Default False.
    """

    file: str
    function: str
    activity: str
    waits: bool = True
    for_ranks: bool = False


_C10D = r"torch/distributed/distributed_c10d\.py$"
# The first signature that matches a frame wins; among the frames of one signature, the innermost.
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
# Patterns in the source line of the innermost frame, if no signature matches: calls into C have no frame.
_CALL_PATTERNS = (
    (re.compile(r"\b(?:time\.)?sleep\("), "in time.sleep"),
    (re.compile(r"\binput\("), "in input(), which waits for a terminal"),
    (re.compile(r"\.(item|cpu|tolist|synchronize)\("), "in .{0}(), which waits for the device"),
    (re.compile(r"\.wait\("), "in wait()"),
    (re.compile(r"\b(all_reduce|all_gather\w*|broadcast|barrier|reduce_scatter\w*)\("), "in {0}"),
)


@dataclass(frozen=True)
class Meaning:
    """The meaning of a stack.

    Parameters
    ----------
    activity : str
        The text after `rank 3 is`: `in all_reduce`, `in time.sleep`; empty if nothing is recognised.
    waits : bool
        Whether the rank may stay there indefinitely.
    for_ranks : bool
        Whether it waits for other ranks.
    depth : int
        Number of innermost frames that are only details of the activity.
    own : Frame, optional
        The innermost frame of the user's code.
    """

    activity: str
    waits: bool
    for_ranks: bool
    depth: int
    own: Frame | None


def find_meaning(frames: Sequence[Frame]) -> Meaning:
    """Return the meaning of a stack.

    Parameters
    ----------
    frames : sequence of Frame
        The innermost frame first.

    Returns
    -------
    Meaning
        With an empty `activity` if nothing is recognised.
    """
    own = next((frame for frame in frames if frame.is_own), None)
    for signature in SIGNATURES:
        for depth, frame in enumerate(frames):
            if re.search(signature.file, frame.file) and re.fullmatch(signature.function, frame.name):
                outermost = _outermost(signature, frames, depth)
                function = frames[outermost].name.strip("_")
                return Meaning(
                    signature.activity.format(function=function), signature.waits, signature.for_ranks, outermost, own
                )
    python = [frame for frame in frames if not frame.is_native]
    for pattern, activity in _CALL_PATTERNS if python else ():
        match = pattern.search(python[0].source)
        if match:
            return Meaning(activity.format(*match.groups()), True, False, 0, own)
    return Meaning("", False, False, 0, own)


def _outermost(signature: Signature, frames: Sequence[Frame], depth: int) -> int:
    """Return the index of the outermost matching frame below the user's code: the call that the user made."""
    found = depth
    for index in range(depth + 1, len(frames)):
        frame = frames[index]
        if frame.is_own:
            break
        if re.search(signature.file, frame.file) and re.fullmatch(signature.function, frame.name):
            found = index
    return found
