"""The windows of a session: the supervisor in the first, and what shows the logs in the others."""

from __future__ import annotations

import sys

from tests.remote.place import Place
from torchfab.remote import job_files
from torchfab.remote.job import start


def test_one_supervisor_has_the_first_window_and_each_other_process_a_viewer(place: Place) -> None:
    for name in ("rank-0", "rank-1"):
        place.prepare(["true"], name=name)
    program = [sys.executable, "-I", "-S", str(place.folder / job_files.BUNDLE), "supervise"]
    assert start.windows(str(place.folder), ["rank-0", "rank-1"]) == [
        ("rank-0", [*program, "rank-0", "rank-1"]),
        ("rank-1", ["cat", str(place.folder / "rank-1" / job_files.WINDOW)]),
    ]
    assert (place.folder / "rank-1" / job_files.WINDOW).is_fifo()
