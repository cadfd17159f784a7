"""The step rate of a job, computed from its log lines."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.remote.job.step_rate import WINDOW_S, StepRate


def fed(*lines: tuple[float, str]) -> StepRate:
    step_rate = StepRate()
    step_rate.feed([[0, when, text] for when, text in lines])
    return step_rate


def test_steps_per_second_are_between_the_first_and_the_last_line() -> None:
    report = fed((10, "step=5/100 loss=3"), (12, "step=10/100 loss=2"), (15, "step=20/100 loss=1")).report(16)
    assert (report["step"], report["steps"], report["steps_s"], report["silent_s"]) == (20, 100, 3.0, 1.0)


def test_lines_with_the_same_time_are_one_point() -> None:
    assert fed((10, "step=1"), (10, "step=2"), (12, "step=4")).report(12)["steps_s"] == 1.0


def test_one_line_has_no_rate() -> None:
    report = fed((10, "step=1/9")).report(10)
    assert (report["step"], report["steps_s"], report["lines_s"]) == (1, None, None)


def test_a_job_without_steps_has_lines_per_second() -> None:
    report = fed((10, "a"), (11, "b"), (14, "c")).report(14)
    assert (report["step"], report["lines_s"]) == (None, 0.5)


def test_a_restart_resets_the_rate() -> None:
    report = fed((10, "step=50"), (12, "step=90"), (20, "step=1"), (22, "step=3")).report(22)
    assert (report["step"], report["steps_s"]) == (3, 1.0)


def test_only_the_last_minute_counts() -> None:
    slow = [(float(second), f"step={second}") for second in range(100)]
    fast = [(100.0 + second, f"step={100 + 5 * second}") for second in range(int(WINDOW_S) + 2)]
    assert fed(*slow, *fast).report(200)["steps_s"] == pytest.approx(5.0, rel=0.05)


@pytest.mark.parametrize("text", ["Step 3", "steps=3", "footstep=3", "step=", "step=x"])
def test_text_that_only_resembles_a_step_is_ignored(text: str) -> None:
    assert fed((1, text)).report(1)["step"] is None


@fuzzed(st.lists(st.tuples(st.floats(0, 1e9), st.text() | st.from_regex(r"step=\d{1,5}", fullmatch=True))))
def test_lines_in_any_order_of_time_give_a_rate(lines: list[tuple[float, str]]) -> None:
    report = fed(*lines).report(1e9)
    assert report["lines_s"] is None or report["lines_s"] >= 0
    assert report["steps_s"] is None or report["steps_s"] >= 0
