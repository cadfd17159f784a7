"""Messages of `env push`: create a virtual environment on a node."""

from __future__ import annotations

from msgspec import Struct

from torchfab.core.bounded_types import Number
from torchfab.transport.messages import Request


class PushEnvAnswer(Struct, frozen=True, kw_only=True):
    """The environment exists on the node.

    Parameters
    ----------
    made : bool
        Whether it had to be created.
    tool : str
        The tool that created it: `uv` or `pip`.
    python : str
        Version of its Python.
    seconds : float
        Duration, in seconds.
    """

    made: bool
    tool: str
    python: str
    seconds: Number


class PushEnvRequest(Request[PushEnvAnswer], frozen=True, tag="push_env"):
    """Create a virtual environment; see `torchfab.remote.host.package_environment`.

    Parameters
    ----------
    folder, workdir : str
        Absolute paths of the environment, and of the directory to which paths in the requirements are relative.
    python : str
        The interpreter that creates it.
    requirements : str
        The packages, as pip reads them.
    digest, source : str
        Digest and name of the requirements file.
    timeout_s : float
        Time limit in seconds.
    requires : str
        Versions of Python that the project needs. Default: any.
    """

    folder: str
    workdir: str
    python: str
    requirements: str
    digest: str
    source: str
    timeout_s: float
    requires: str = ""
    ANSWER = PushEnvAnswer
