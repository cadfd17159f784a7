"""Check JSON documents against their schemas: what `--json` prints anywhere in the tests passes through here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from torchfab import documents
from torchfab.documents import schema

TASKS = {"jobs", "status", "why", "stacks", "profile", "top", "doctor", "network", "run", "sync", "env", "trust"}
TASKS |= {"lemons", "config"}


@cache
def validator(name: str) -> Draft202012Validator:
    """Return the validator of a document, which refuses fields that its schema does not have."""
    return Draft202012Validator(schema.schema(name, strict=True))


def problems(name: str, document: Any) -> list[str]:
    """Return what is wrong with a document: nothing if it agrees with its schema."""
    return [f"{name} {error.json_path}: {error.message}" for error in validator(name).iter_errors(document)]


def checked(name: str, document: Any) -> Any:
    """Assert that what a command would print agrees with its schema; return it as its reader gets it."""
    found = json.loads(documents.encode(document))
    assert problems(name, found) == []
    return found


def name_of(args: Sequence[str]) -> str | None:
    """Return the name of the document that `fab ARGS` prints; None without `--json`."""
    own = list(args[: args.index("--")] if "--" in args else args)
    if "--json" not in own:
        return None
    task = next((word for word in own if word in TASKS), None)
    return "events" if task == "jobs" and "--events" in own else task


def check_output(args: Sequence[str], stdout: str) -> None:
    """Assert that the output of `fab ARGS` agrees with its schema, if it is one JSON document."""
    if (name := name_of(args)) is None or not stdout:
        return
    try:
        document = json.loads(stdout)
    except ValueError:  # `status --watch`, or a test of a text that is not JSON
        return
    assert problems(name, document) == [], args
