"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import faulttable
from torchfab.core import program_name
from torchfab.core.program_name import ProgramName

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"

# xdist distributes whole files, in this order. Slow files come first, so that no worker ends with one alone.
LONGEST_FIRST = (
    "integration/test_supervise",
    "integration/test_fault_training",
    "integration/test_training",
    "integration/test_slurm",
    "integration/test_graceful_end",
    "integration/test_deepspeed",
    "integration/test_jobs",
    "integration/test_commands",
    "integration/test_colossalai",
    "integration/test_mpi",
    "integration/test_kubernetes",
    "integration/test_why_torch",
    "integration/test_launch_training",
    "integration/test_fault_many",
    "integration/",
    "test_run",
    "test_train_llm",
    "test_tasks",
    "remote/test_texts",
    "runtimes/kubernetes/",
    "transport/",
)

# No deadline and no limit on the time to draw examples, because a slow machine is not an error. In CI the examples are
# the same in every run, except for fuzz.
SAME = os.environ.get("CI") == "true" and "TORCHFAB_FUZZ_EXAMPLES" not in os.environ
SLOW = [HealthCheck.too_slow]
settings.register_profile("suite", max_examples=50, deadline=None, derandomize=SAME, suppress_health_check=SLOW)
settings.load_profile("suite")


# A shell starts background processes with SIGINT ignored. The programs under test would inherit that and ignore a
# test's Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --golden, which `inv golden` passes."""
    parser.addoption("--rounds", type=int, default=5, help="number of launches and stops in the stress test")
    parser.addoption("--thorough", action="store_true", help="run long tests in full: ten kills, 64 hosts, more faults")
    parser.addoption("--kills", type=int, default=4, help="number of commands that the stress test kills")
    parser.addoption("--faults", default="", help="write the fault matrix into this page of the docs")
    parser.addoption("--ends", default="", help="end jobs in every way on every launcher, and write this page")
    parser.addoption("--save-s", type=float, help="how long ranks save there (default 40; in the suite 2)")
    parser.addoption("--stress", default="", help="write what the stress tests counted into this page")
    parser.addoption("--plays", default="", help="give every play on every launcher, and write this page of the docs")
    parser.addoption("--golden", action="store_true", help="rewrite the golden records instead of comparing with them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the tests. With --golden or --faults, run only tests with golden records, or with rows of the matrix."""
    items.sort(key=_position)
    if not config.getoption("--thorough"):
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    if config.getoption("--golden"):
        items[:] = [item for item in items if "golden" in getattr(item, "fixturenames", ())]
    if config.getoption("--faults"):
        items[:] = [item for item in items if "matrix" in getattr(item, "fixturenames", ())]


def _position(item: pytest.Item) -> int:
    path = item.path.relative_to(TESTS).as_posix()
    return next((index for index, start in enumerate(LONGEST_FIRST) if path.startswith(start)), len(LONGEST_FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Drop objects that a failed test left open; otherwise their ResourceWarnings make a later test fail."""
    result = yield
    if hasattr(sys, "last_value"):  # pytest keeps the exception, and thus all objects of the test, until the next one
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            vars(sys).pop(name, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the rows of the fault matrix and the ends, and write them into the pages of --faults and --ends."""
    reports = [report for each in terminalreporter.stats.values() for report in each]
    found = {(report.nodeid, row[0]): row for report in reports for row in faulttable.rows_of(report)}
    if found:
        rows = faulttable.in_order(list(found.values()))
        terminalreporter.section("result of each fault")
        terminalreporter.write_line(faulttable.as_text(rows))
        if config.getoption("--faults"):
            faulttable.write(Path(config.getoption("--faults")), rows)
    ends = [*{tuple(end[:2]): end for report in reports for end in faulttable.ends_of(report)}.values()]
    if ends:
        terminalreporter.section("how ranks ended")
        terminalreporter.write_line(faulttable.as_markdown(ends, faulttable.ENDS_HEAD))
    if ends and config.getoption("--ends"):
        faulttable.write_ends(Path(config.getoption("--ends")), ends)
    stress = [*{row[0]: row for report in reports for row in faulttable.stress_of(report)}.values()]
    if stress:
        terminalreporter.section("what was left after ends at random moments")
        terminalreporter.write_line(faulttable.as_markdown(stress, faulttable.STRESS_HEAD))
    if stress and config.getoption("--stress") and not terminalreporter.stats.get("failed"):
        faulttable.write_stress(Path(config.getoption("--stress")), stress)
    plays = [play for report in reports for play in faulttable.plays_of(report)]
    if plays and config.getoption("--plays"):
        faulttable.write_plays(Path(config.getoption("--plays")), plays)


@pytest.fixture(autouse=True)
def _stop_signal() -> Iterator[None]:
    """Restore the SIGUSR1 handler: after a launch it ignores `fab stop`'s signal, which child processes inherit."""
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(autouse=True)
def _called_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test begin with the program name `fab`, which is set once per process."""
    monkeypatch.setattr(program_name, "_called", [ProgramName()])


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    """Return whether long tests run in full, as `inv reliability` and `inv stress` ask for."""
    return bool(request.config.getoption("--thorough"))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return golden(name, text): compare text with tests/golden/<name>; a missing record fails."""
    rewrite = bool(request.config.getoption("--golden"))

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if rewrite:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists():
            pytest.fail(f"no golden record {path}: look at the text, then write it with `inv golden`:\n{text}")
        assert path.read_text(encoding="utf-8") == text, f"differs from {path}; if that is right: inv golden"

    return check
