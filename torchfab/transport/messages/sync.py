"""Messages about the files of the working directory."""

from __future__ import annotations

from msgspec import Struct

from torchfab.core.bounded_types import Whole
from torchfab.transport.messages import Request


class WorkdirAnswer(Struct, frozen=True):
    """Whether the launch machine's working directory is the same directory on the node."""

    shared: bool


class WorkdirRequest(Request[WorkdirAnswer], frozen=True, tag="workdir"):
    """Test whether the working directory is shared, and create it if it is not."""

    workdir: str
    token: str
    ANSWER = WorkdirAnswer


class FilesAnswer(Struct, frozen=True, kw_only=True):
    """How the files on a node compare with those of the launch machine."""

    checked: Whole
    missing: Whole
    differing: Whole
    names: list[str]


class FilesRequest(Request[FilesAnswer], frozen=True, tag="files"):
    """Compare the files on a node with digests; give up after `within_s` seconds."""

    workdir: str
    digests: dict[str, str]
    within_s: float
    ANSWER = FilesAnswer
