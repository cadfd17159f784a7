"""Raw results, one JSON object per line, so that the parts of a benchmark can run one by one and stop anywhere."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Key = dict[str, Any]


class Store:
    """Saved results.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.results: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]

    def has(self, key: Key) -> bool:
        """Return whether there is a result for this key."""
        return any(each["key"] == key for each in self.results)

    def add(self, key: Key, values: dict[str, Any]) -> None:
        """Save a result."""
        self.results.append({"key": key, "values": values})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(self.results[-1]) + "\n")

    def drop(self, part: str) -> None:
        """Delete the results of a part."""
        self.results = [each for each in self.results if each["key"]["part"] != part]
        self.path.write_text("".join(json.dumps(each) + "\n" for each in self.results))

    def select(self, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield the results that match these entries, of key or values; each with the entries of its key."""
        for each in self.results:
            result = {**each["values"], **each["key"]}
            if all(result.get(name) == value for name, value in query.items()):
                yield result

    def median(self, value: str, **query: Any) -> float | None:
        """Return the median of a value over the rounds; None without results."""
        found = [each[value] for each in self.select(**query) if each.get(value) is not None]
        return statistics.median(found) if found else None

    def known(self, name: str, **query: Any) -> list[Any]:
        """Return the distinct values of an entry, in order of appearance."""
        return list(dict.fromkeys(each[name] for each in self.select(**query) if name in each))
