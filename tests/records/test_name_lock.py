"""The lock on a job's name, while other processes claim and free the same name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from torchfab.records.name_lock import NameLock

ROOT = Path(__file__).parents[2]
# Claims a name and frees it, again and again; fails when another process has a file in the folder, or removes it.
CLAIMANT = """
import sys
from pathlib import Path
from torchfab.records.name_lock import NameLock
names = NameLock(Path(sys.argv[1]))
claimed = 0
while claimed < 50:
    if names.acquire("x"):
        claimed += 1
        for file in ("asked.json", "record.json"):
            (names.root / "x" / file).touch(exist_ok=False)
        names.remove("x")
"""


def test_a_name_whose_lock_is_free_has_no_record_left(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Watched(NameLock):
        def unlock(self, name: str) -> None:
            seen.append((self.root / name / "record.json").exists())
            super().unlock(name)

    names = Watched(tmp_path)
    names.acquire("x")
    (tmp_path / "x" / "record.json").touch()
    names.remove("x")
    assert seen == [False]
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_many_processes_claim_and_free_belongs_to_one(tmp_path: Path) -> None:
    argv = (sys.executable, "-c", CLAIMANT, str(tmp_path))
    processes = [subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert errors == 4 * [""]
    assert list(tmp_path.iterdir()) == []
