"""Raw results, a JSON object a line, so that the parts of a benchmark can run one by one and be cut off anywhere."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Key = dict[str, Any]


class Store:
    """What was measured so far.

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
        """Say whether there is a result already."""
        return any(each["key"] == key for each in self.results)

    def add(self, key: Key, values: dict[str, Any]) -> None:
        """Keep a result."""
        self.results.append({"key": key, "values": values})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(self.results[-1]) + "\n")

    def drop(self, part: str) -> None:
        """Forget the results of a part."""
        self.results = [each for each in self.results if each["key"]["part"] != part]
        self.path.write_text("".join(json.dumps(each) + "\n" for each in self.results))

    def select(self, **wanted: Any) -> Iterator[dict[str, Any]]:
        """Yield the results that hold these values, in their keys or beside them; each with its key's entries."""
        for each in self.results:
            result = {**each["values"], **each["key"]}
            if all(result.get(name) == value for name, value in wanted.items()):
                yield result

    def median(self, value: str, **wanted: Any) -> float | None:
        """Return the median of a value over the rounds; None where nothing was measured."""
        found = [each[value] for each in self.select(**wanted) if each.get(value) is not None]
        return statistics.median(found) if found else None

    def known(self, name: str, **wanted: Any) -> list[Any]:
        """Return the values that an entry of the keys has, in the order in which they came."""
        return list(dict.fromkeys(each[name] for each in self.select(**wanted) if name in each))
