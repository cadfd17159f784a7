"""Bounded types for numbers that nodes report, so that no wrong number can overload this machine.

msgspec checks the bounds when it decodes an answer.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

Whole: TypeAlias = Annotated[int, Meta(ge=-(10**18), le=10**18)]
Number: TypeAlias = Annotated[int, Meta(ge=-(10**18), le=10**18)] | Annotated[float, Meta(ge=-1e24, le=1e24)]
Time: TypeAlias = Annotated[float, Meta(ge=-1e11, le=1e11)]  # in seconds since the epoch
Count: TypeAlias = Annotated[int, Meta(ge=0, le=10**6)]
Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
ExitCode: TypeAlias = Annotated[int, Meta(ge=-(10**9), le=10**9)]  # -n for signal n; a script can print any
Label: TypeAlias = Whole | str  # of a log file: a rank, or the name of a process
Text: TypeAlias = Annotated[str, Meta(min_length=1)]
