"""The JSON documents that commands print with `--json`: their version, and how they are written.

    torchfab/documents/jobs.py     documents of one job: jobs, events, status, why, stacks, profile
    torchfab/documents/hosts.py    documents of hosts: top, doctor, network, run, sync, env, trust; lemons, config
    torchfab/documents/schema.py   their JSON Schemas, and docs/reference/json.md

A command builds its document from plain values, and `encode` adds the version: a command need not load the structs,
which only describe the documents. The tests check every document that they see against its struct.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

VERSION = 1  # raised when a field is removed, renamed, or changes its type or meaning; new fields do not raise it


def encode(
    document: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    indent: int | None = 2,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """Return the JSON text of a document, with its version.

    Parameters
    ----------
    document : Mapping, or sequence of Mapping
        JSON values by name. In a list, every element gets the version.
    indent : int, optional
        Spaces for each level; None: one line. Default 2.
    default : callable, optional
        Converts values that are not JSON. Default None: they are an error.

    Returns
    -------
    str
        ASCII text.
    """
    if isinstance(document, Mapping):
        return json.dumps({"version": VERSION, **document}, indent=indent, default=default)
    return json.dumps([{"version": VERSION, **each} for each in document], indent=indent, default=default)
