"""What a kubelet does to a container's words, by its documentation: `$(NAME)` is filled in, `$$` becomes `$`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def expand(text: str, env: Mapping[str, str]) -> str:
    """Return a command's word, or a variable's value, as the container gets it."""
    out, position = [], 0
    while position < len(text):
        sign, rest = text[position], text[position + 1 :]
        if sign == "$" and rest.startswith("$"):
            out.append("$")
            position += 2
        elif sign == "$" and rest.startswith("(") and ")" in rest:
            name = rest[1 : rest.index(")")]
            out.append(env.get(name, f"$({name})"))
            position += len(name) + 3
        else:
            out.append(sign)
            position += 1
    return "".join(out)


def environment_of(container: Mapping[str, Any], index: int, secrets: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a manifest gives the container of one pod."""
    env: dict[str, str] = {}
    for entry in container["env"]:
        source = entry.get("valueFrom", {})
        if "fieldRef" in source:
            assert "job-completion-index" in source["fieldRef"]["fieldPath"]
            env[entry["name"]] = str(index)
        elif "secretKeyRef" in source:
            env[entry["name"]] = secrets[source["secretKeyRef"]["key"]]
        else:
            env[entry["name"]] = expand(entry["value"], env)
    return env


def argv_of(container: Mapping[str, Any], env: Mapping[str, str]) -> list[str]:
    """Return the command that the container of a pod runs."""
    return [expand(word, env) for word in (*container["command"], *container["args"])]
