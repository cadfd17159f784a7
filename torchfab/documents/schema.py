"""The JSON Schemas of the documents, and the page that describes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from torchfab.documents import hosts, jobs

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_BOUNDS = ("minimum", "maximum", "default")  # of the values that a node may report
# The command that prints each document, by the name of its schema.
DOCUMENTS: Mapping[str, tuple[str, Any]] = {
    "jobs": ("fab jobs --json", list[jobs.Job]),
    "events": ("fab jobs --events --json", list[jobs.Event]),
    "status": ("fab status --json", jobs.Status),
    "why": ("fab why --json", jobs.Why),
    "stacks": ("fab stacks --json", jobs.Stacks),
    "profile": ("fab profile --json", jobs.Profile),
    "top": ("fab top --json", hosts.Top),
    "doctor": ("fab doctor --json", hosts.Doctor),
    "network": ("fab network --json", hosts.Network),
    "run": ("fab run --json -- CMD", hosts.Run),
    "sync": ("fab sync --json", hosts.Sync),
    "env": ("fab env push --json", hosts.EnvPush),
    "trust": ("fab trust --json", list[hosts.Trust]),
    "lemons": ("fab lemons --json", hosts.Lemons),
    "config": ("fab config --json", hosts.Config),
}


def schema(name: str, strict: bool = False) -> dict[str, Any]:
    """Return the JSON Schema of a document.

    Parameters
    ----------
    name : str
        A key of `DOCUMENTS`.
    strict : bool
        Refuse fields that the schema does not have. Default False: a reader must expect new ones.

    Returns
    -------
    dict
    """
    command, of_type = DOCUMENTS[name]
    made: dict[str, Any] = _portable(msgspec.json.schema(of_type), strict)
    return {"$schema": _DIALECT, "title": command, **made}


def _portable(value: Any, strict: bool) -> Any:
    """Return a part of a schema without what is of Python (`\\Z`), and without what only bounds a node's answers."""
    if isinstance(value, dict):
        left_out = (*_BOUNDS, *(() if strict else ("additionalProperties",)))
        named = {key: each for key, each in value.items() if key not in left_out or _is_map(key, each)}
        kept = {key: _portable(each, strict) for key, each in named.items()}
        return {key: each.replace("\\Z", "$") if key == "pattern" else each for key, each in kept.items()}
    return [_portable(each, strict) for each in value] if isinstance(value, list) else value


def _is_map(key: str, value: Any) -> bool:
    return key == "additionalProperties" and isinstance(value, dict)  # the type of the values of a dict


def text(name: str) -> str:
    """Return the content of the schema's file.

    Parameters
    ----------
    name : str
        A key of `DOCUMENTS`.

    Returns
    -------
    str
        JSON, with a line end.
    """
    return json.dumps(schema(name), indent=1) + "\n"


def head_of(page: str) -> str:
    """Return what is written by hand on the reference page: all before its first section about a command.

    Parameters
    ----------
    page : str
        The page.

    Returns
    -------
    str
        Without an empty line at its end.
    """
    return page.partition("\n## fab ")[0].rstrip()


def page(head: str) -> str:
    """Return the reference page: a table for every document and for every object in it.

    Parameters
    ----------
    head : str
        What comes before the tables.

    Returns
    -------
    str
        Markdown.
    """
    return "\n".join([head, *(line for name in DOCUMENTS for line in _section(name))])


def _section(name: str) -> Iterator[str]:
    found = schema(name)
    is_list = found.get("type") == "array"
    parts: dict[str, dict[str, Any]] = found["$defs"]
    main = (found["items"] if is_list else found)["$ref"].rpartition("/")[2]
    what = parts[main]["description"].partition("\n")[0]
    yield from ("", f"## {found['title']}", "")
    of_list = "A list. Each element: " if is_list else ""
    yield f"{of_list}{what} Schema: [{name}.schema.json](schemas/{name}.schema.json)."
    yield from _table(parts[main])
    for other in sorted(parts.keys() - {main, "State"}):
        yield from ("", f"**{other}**: {parts[other]['description'].partition(chr(10))[0]}")
        yield from _table(parts[other])


def _table(part: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "| field | type | |", "| --- | --- | --- |")
    for name, field in part["properties"].items():
        yield f"| `{name}` | {_type(field)} | {field.get('description', '')} |"


def _type(field: Mapping[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return "state" if name == "State" else str(name)
    if options := field.get("anyOf"):
        return " or ".join(dict.fromkeys(_type(each) for each in options))
    if "enum" in field:
        return " or ".join(f"`{each}`" for each in field["enum"])
    kind = field.get("type", "any")
    if kind == "array":
        return f"list of {_type(field['items'])}" if field.get("items") else "list"
    if kind == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"object: {_type(field['additionalProperties'])} by name"
    return str(kind)
