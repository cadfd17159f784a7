"""Messages of `env push`: make the environment of packages on a node."""

from __future__ import annotations

from msgspec import Struct

from torchfab.core.bounded_types import Number
from torchfab.transport.messages import Request


class PushEnvAnswer(Struct, frozen=True, kw_only=True):
    """The environment is there.

    Parameters
    ----------
    made : bool
        Whether it had to be made.
    tool : str
        What made it: `uv` or `pip`.
    python : str
        Version of its Python.
    seconds : float
        How long it took.
    """

    made: bool
    tool: str
    python: str
    seconds: Number


class PushEnvRequest(Request[PushEnvAnswer], frozen=True, tag="push_env"):
    """Make a virtual environment; see `torchfab.remote.host.package_environment`.

    Parameters
    ----------
    folder, workdir : str
        Absolute paths of the environment, and of the directory that paths in the list are relative to.
    python : str
        The interpreter that makes it.
    requirements : str
        The packages, as pip reads them.
    digest, source : str
        Digest and name of the file that they come from.
    timeout_s : float
        Time limit in seconds.
    """

    folder: str
    workdir: str
    python: str
    requirements: str
    digest: str
    source: str
    timeout_s: float
    ANSWER = PushEnvAnswer
