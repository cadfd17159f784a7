"""The summary of a profile, as it is printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.json_documents import checked
from tests.profiling.factories import profiled, ranked
from torchfab.profiling import report
from torchfab.profiling.model import JobProfile, Unprofiled

TIMES = [
    replace(ranked(0, (1, 0, 600)), compute=((0.0, 300e3),), communication=((300e3, 900e3),)),
    replace(ranked(1, (1, 550, 600)), compute=((0.0, 800e3),), data=((850e3, 900e3),)),
]
RANKS = (profiled(Path("0")), profiled(Path("1"), 1))
PROFILE = JobProfile(RANKS, (Unprofiled(2, "node2", "no probe"),), 0.001, {"node3": "no answer"})
EXPECTED = """\
job x: 2 ranks for 3 s, in x.json.gz

                 compute  communication  exposed  data   idle
rank 0 on node0  30.0 %   60.0 %         60.0 %   0.0 %  10.0 %
rank 1 on node1  80.0 %   0.0 %          0.0 %    5.0 %  15.0 %

all_reduce of group 0: 1 of 600.0 ms; rank 1 came last in 1, by 550.0 ms

without a profile:
rank 2 on node2: no probe
node3: no answer"""


def test_the_summary_as_text() -> None:
    assert report.render("x", "x.json.gz", 3.0, PROFILE, TIMES) == EXPECTED


def test_a_difference_below_that_of_the_clocks_is_not_reported() -> None:
    found = report.render("x", "x.json.gz", 3.0, replace(PROFILE, clock_s=0.6), TIMES)
    assert "who comes last is not known: the clocks agree within 600.0 ms" in found
    assert "came last" not in found


def test_the_summary_as_json() -> None:
    found = checked("profile", report.as_json("x", "x.json.gz", 3.0, PROFILE, TIMES))
    assert [(each["rank"], each["host"], each["idle"]) for each in found["ranks"]] == [
        (0, "node0", 0.1),
        (1, "node1", 0.15),
    ]
    assert found["collectives"][0]["rank"] == 1
    assert found["missing"] == [{"rank": 2, "host": "node2", "reason": "no probe"}]
    assert found["failed"] == {"node3": {"error": "no answer", "fix": ""}}
