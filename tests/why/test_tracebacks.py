"""Tracebacks found in logs, and their fingerprints."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.why import tracebacks

PLAIN = """\
Traceback (most recent call last):
  File "/a/train.py", line 10, in <module>
    main()
  File "/a/train.py", line 7, in main
    raise ValueError("bad batch 17")
ValueError: bad batch 17
"""


def printed_by(code: str) -> str:
    """Return what Python prints for an uncaught exception."""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


def last_traceback(text: str) -> tracebacks.Traceback:
    found = tracebacks.last_traceback(text)
    assert found
    return found


def test_last_traceback_of_a_log_is_complete() -> None:
    first = PLAIN.replace("ValueError", "KeyError")
    found = last_traceback(f"step 1\n{first}retrying\nstep 2\n{PLAIN}W1121 10:00:00.000 torchrun says more\n")
    assert found.text == PLAIN.rstrip("\n")
    assert found.exception == "ValueError: bad batch 17"
    assert found.frames == (("train.py", "<module>"), ("train.py", "main"))


def test_rank_prefix_of_torch_is_removed() -> None:
    prefixed = "".join(f"[rank12]: {line}\n" for line in PLAIN.splitlines())
    assert last_traceback(prefixed) == last_traceback(PLAIN)


def test_chained_exceptions_are_kept_and_named_by_the_cause() -> None:
    code = "def f():\n try: 1/0\n except Exception as e: raise ValueError('bad') from e\nf()"
    found = last_traceback(printed_by(code))
    assert found.exception == "ZeroDivisionError: division by zero"
    assert [member.exception for member in found.members] == [found.exception, "ValueError: bad"]
    assert "ZeroDivisionError: division by zero" in found.text
    assert found.text.count("Traceback") == 2


def test_exception_of_a_data_loader_worker_is_used() -> None:
    inner = PLAIN.replace("Traceback", "Original Traceback")
    outer = PLAIN.replace(
        "ValueError: bad batch 17\n", "ValueError: Caught ValueError in DataLoader worker process 0.\n"
    )
    assert last_traceback(outer + inner).exception == "ValueError: bad batch 17"


def test_syntax_error_is_found_without_a_traceback_line() -> None:
    found = last_traceback("  File \"/a/train.py\", line 3\n    foo(\n       ^\nSyntaxError: '(' was never closed\n")
    assert found.exception == "SyntaxError: '(' was never closed"
    assert 'File "/a/train.py", line 3' in found.text


def test_multiline_message_ends_before_cpp_frames() -> None:
    text = PLAIN + "more of it\nException raised from x at y.cpp:1\nframe #0: foo\n"
    assert last_traceback(text).exception == "ValueError: bad batch 17\nmore of it"


@pytest.mark.parametrize(
    "text", ["", "Traceback (most recent call last):", PLAIN.rpartition("ValueError")[0], "no: colon"]
)
def test_incomplete_traceback_is_not_returned(text: str) -> None:
    assert tracebacks.last_traceback(text) is None


def test_fingerprint_ignores_numbers_addresses_and_folders() -> None:
    other = PLAIN.replace("17", "9 at 0x7f12ab").replace("/a/", "/somewhere/else/").replace("line 7", "line 8")
    same = PLAIN.replace("17", "234 at 0x1")
    assert last_traceback(other).fingerprint == last_traceback(same).fingerprint
    assert last_traceback(PLAIN).fingerprint != last_traceback(PLAIN.replace("ValueError", "KeyError")).fingerprint
    assert last_traceback(PLAIN).fingerprint != last_traceback(PLAIN.replace("in main", "in evaluate")).fingerprint


@fuzzed(st.text(), st.text())
def test_traceback_is_found_in_any_surrounding_text(before: str, after: str) -> None:
    tracebacks.last_traceback(before)
    found = tracebacks.last_traceback(f"{before}\n{PLAIN}\n{after}")
    assert found is not None
    assert tracebacks.last_traceback(f"{before}\n{PLAIN}") is not None


# ---- prefixes: whatever stands before the head

TIMES = st.datetimes().map(lambda time: time.isoformat(timespec="microseconds") + "Z")
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)
PREFIXES = st.one_of(
    st.sampled_from(
        (
            *("[default1]:[rank1]: ", "10.0.0.1: ", "3: ", "[1,3]<stderr>:", "(Worker pid=7) ", "trainer-1  | "),
            *("(RayTrainWorker pid=12, ip=10.0.0.2) ", "(EngineCore_DP0 pid=9) ERROR 05-12 10:00:01 [core.py:708] "),
            *("[stderr] ", "    ", "\x1b[36m(Actor pid=1)\x1b[0m ", "[rank0]:[2026-01-02 10:00:00,123] "),
        )
    ),
    st.builds("{}{}".format, WORDS, st.sampled_from((": ", " ", "| ", ":", "> "))),
    st.builds("{} {} ".format, TIMES, WORDS),
)


def prefixed(text: str, prefix: str) -> str:
    return "".join(f"{prefix}{line}\n" for line in text.splitlines())


@fuzzed(PREFIXES)
def test_traceback_is_found_behind_any_prefix(prefix: str) -> None:
    found = last_traceback(f"step 1\n{prefixed(PLAIN, prefix)}")
    assert (found.exception, found.frames) == ("ValueError: bad batch 17", last_traceback(PLAIN).frames)
    assert found.text == PLAIN.rstrip("\n")


@fuzzed(st.lists(TIMES, min_size=6, max_size=6))
def test_times_before_the_lines_may_differ(times: list[str]) -> None:
    text = "".join(f"{time} stderr F {line}\n" for time, line in zip(times, PLAIN.splitlines(), strict=True))
    assert last_traceback(text) == last_traceback(PLAIN)


@fuzzed(st.lists(st.integers(0, 3), min_size=24, max_size=24))
def test_interleaved_ranks_are_kept_apart(order: list[int]) -> None:
    queues = {rank: prefixed(PLAIN.replace("17", str(rank)), f"[rank{rank}]: ").splitlines() for rank in range(4)}
    lines = [queues[rank].pop(0) for rank in order if queues[rank]]
    lines += [line for rest in queues.values() for line in rest]
    found = tracebacks.all_tracebacks("\n".join(lines))
    assert sorted(each.exception for each in found) == [f"ValueError: bad batch {rank}" for rank in range(4)]


def test_prefix_of_a_logger_may_stand_before_the_head_only() -> None:
    assert last_traceback(f"2026-01-02 10:00:00 ERROR train {PLAIN}") == last_traceback(PLAIN)


# ---- chains, groups, notes, wrappers

NEW_EXCEPTIONS = pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups and notes came with 3.11")

CLASSES = st.sampled_from(("KeyError", "ValueError", "RuntimeError", "OSError", "TypeError"))
RAISED = st.tuples(CLASSES, st.integers(0, 999))


@fuzzed(
    st.lists(RAISED, min_size=2, max_size=4, unique=True), st.lists(st.booleans(), min_size=3, max_size=3), PREFIXES
)
def test_chain_begins_with_its_cause(raised: list[tuple[str, int]], direct: list[bool], prefix: str) -> None:
    sentences = ("During handling of the above exception, another exception occurred:",
                 "The above exception was the direct cause of the following exception:")  # fmt: skip
    text = PLAIN.replace("ValueError: bad batch 17", "{}: number {}".format(*raised[0]))
    for (name, number), is_direct in zip(raised[1:], direct, strict=False):
        next_one = PLAIN.replace("ValueError: bad batch 17", f"{name}: number {number}")
        text += f"\n{sentences[is_direct]}\n\n{next_one}"
    (found,) = tracebacks.all_tracebacks(prefixed(text, prefix))
    assert [member.exception for member in found.members] == ["{}: number {}".format(*each) for each in raised]
    assert found.links == tuple("direct" if each else "handling" for each in direct[: len(raised) - 1])


@NEW_EXCEPTIONS
def test_group_yields_the_exceptions_that_it_holds() -> None:
    code = """
def f(x): raise ValueError(x)
def held(x):
    try: f(x)
    except Exception as e: return e
try: raise ExceptionGroup("inner", [TypeError("leaf")])
except Exception as e: inner = e
raise ExceptionGroup("outer", [held(1), held(2), inner])
"""
    found = last_traceback(printed_by(code))
    assert [member.exception for member in found.members][:3] == ["ValueError: 1", "ValueError: 2", "TypeError: leaf"]
    assert found.frames[-1] == ("<string>", "f")


@NEW_EXCEPTIONS
def test_notes_belong_to_the_message() -> None:
    found = last_traceback(printed_by("e = ValueError('x'); e.add_note('while loading shard 3'); raise e"))
    assert found.exception == "ValueError: x\nwhile loading shard 3"


NESTED = {
    "spawn": "torch.multiprocessing.spawn.ProcessRaisedException: \n\n"
    "-- Process 1 terminated with the following error:\n{}",
    "loader": "ValueError: Caught ValueError in DataLoader worker process 0.\nOriginal {}",
    "ray": "ray.exceptions.RayTaskError(ValueError): ray::f() (pid=1, ip=10.0.0.1)\n{}",
}


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("prefix", ["", "(Worker pid=3) "])
def test_wrapper_leads_to_the_exception_that_it_prints(name: str, prefix: str) -> None:
    inner = PLAIN.partition("\n")[2] if name == "ray" else PLAIN
    outer = PLAIN.replace("ValueError: bad batch 17\n", NESTED[name].format(inner)).replace("train.py", "main.py", 2)
    (found,) = tracebacks.all_tracebacks(prefixed(outer, prefix))
    assert found.exception == "ValueError: bad batch 17"
    assert len(found.members) == 2
    assert "main.py" in found.text


def test_traceback_of_a_process_pool_is_one_chain() -> None:
    code = (
        "from concurrent.futures import *\nif __name__ == '__main__': ProcessPoolExecutor(1).submit(int, 'x').result()"
    )
    (found,) = tracebacks.all_tracebacks(printed_by(code))
    assert found.exception.startswith("ValueError: invalid literal for int()")


# ---- what CPython 3.9 to 3.14 prints

MESSAGES = st.one_of(
    st.just(""),
    st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs")), min_size=1, max_size=40).map(str.strip),
    st.sampled_from(("'img'", "shape '[2, -1]' is invalid for input of size 7", "File not found: /a b/c", "(1, 2)")),
)
FUNCTIONS = st.sampled_from(("main", "<module>", "Trainer.fit", "f.<locals>.<lambda>", "<listcomp>", "__getitem__"))


@st.composite
def printed_frames(draw: st.DrawFn) -> tuple[str, tuple[str, str]]:
    """Return a frame as one of the versions prints it, and its file and function."""
    file, function = draw(st.sampled_from(("train.py", "data loader.py", "<string>", "modèle.py"))), draw(FUNCTIONS)
    place = f'  File "/srv/run/{file}", line {draw(st.integers(1, 9999))}, in {function}'
    source = draw(st.sampled_from(("", "    main()", '    raise ValueError("x: y")', "    return a[i]  # Error: none")))
    lines = [place, *([source] if source else [])]
    if source and draw(st.booleans()):  # 3.11
        lines.append("    " + draw(st.sampled_from(("^^^^^^", "~~~~^^^^", "  ~~~~~^^^  "))))
    if draw(st.booleans()):
        lines.append(f"  [Previous line repeated {draw(st.integers(3, 990))} more times]")
    return "\n".join(lines), (file, function)


@fuzzed(
    st.lists(printed_frames(), min_size=1, max_size=6),
    st.sampled_from(("KeyError", "torch.OutOfMemoryError", "my.pkg.Bad", "a.b.<locals>.CustomError", "Stop")),
    MESSAGES,
    st.lists(st.sampled_from(("while loading shard 3", "  hint: indented", "Did you mean: 'b'?")), max_size=2),
    st.booleans(),
)
def test_tracebacks_of_all_versions_are_read(
    frames: list[tuple[str, tuple[str, str]]], name: str, message: str, notes: list[str], has_colours: bool
) -> None:
    raised = f"{name}: {message}" if message else name
    shown = f"\x1b[1;35m{name}\x1b[0m" + (f": \x1b[35m{message}\x1b[0m" if message else "")
    places = [place for place, _ in frames]
    if has_colours:  # 3.13
        places = [re.sub(r'(".*")', "\x1b[35m\\1\x1b[0m", place, count=1) for place in places]
    lines = ["Traceback (most recent call last):", *places, shown if has_colours else raised, *notes]
    found = last_traceback("\n".join(["step 1", *lines, "", "the end"]))
    assert found.exception.split("\n") == [raised, *notes]
    assert [(file, function) for file, function in found.frames] == [calls for _, calls in frames]


# ---- secondary tracebacks

MARKS = {
    "Exception in thread Thread-1 (_pin_memory_loop):": tracebacks.Role.THREAD,
    "Exception ignored in: <function Engine.__del__ at 0x7f>": tracebacks.Role.IGNORED,
    "Exception ignored in atexit callback: <function f at 0x7f>": tracebacks.Role.IGNORED,
    "Exception ignored while calling deallocator <function A.__del__ at 0x7f>:": tracebacks.Role.IGNORED,
    "Error in atexit._run_exitfuncs:": tracebacks.Role.IGNORED,
    "--- Logging error ---": tracebacks.Role.IGNORED,
    "Task exception was never retrieved\nfuture: <Task finished>": tracebacks.Role.IGNORED,
    "Process SpawnProcess-3:": tracebacks.Role.CHILD,
    "Process Process-2:3:": tracebacks.Role.CHILD,
    "2026-01-02 WARNING retry 2 failed": tracebacks.Role.WARNED,
}


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("prefix", ["", "[rank1]: ", "(Worker pid=3) "])
def test_secondary_traceback_after_the_true_one_is_not_taken(mark: str, prefix: str) -> None:
    other = PLAIN.replace("ValueError: bad batch 17", "ConnectionResetError: [Errno 104] Connection reset by peer")
    found = tracebacks.all_tracebacks(prefixed(f"{PLAIN}{mark}\n{other}", prefix))
    assert [each.role for each in found] == [tracebacks.Role.MAIN, MARKS[mark]]
    assert last_traceback(prefixed(f"{PLAIN}{mark}\n{other}", prefix)).exception == "ValueError: bad batch 17"


# ---- layouts of other printers

LOGURU = """\
2026-05-01 10:00:00.000 | ERROR    | __main__:<module>:20 - An error has been caught in function '<module>'
Traceback (most recent call last):

> File "/a/train.py", line 20, in <module>
    main()
    └ <function main at 0x7f>

  File "/a/train.py", line 7, in main
    return 1 / x
               └ 0

ZeroDivisionError: division by zero
"""
RICH = """\
╭───────────────────── Traceback (most recent call last) ─────────────────────╮
│ /a/train.py:20 in <module>                                                  │
│                                                                             │
│   19                                                                        │
│ ❱ 20 main()                                                                 │
│                                                                             │
│ /a/train.py:7 in main                                                       │
│                                                                             │
│ ❱  7 │   return 1 / x                                                       │
│                                                                             │
│ ╭─ locals ─╮                                                                │
│ │ x = 0    │                                                                │
│ ╰──────────╯                                                                │
╰─────────────────────────────────────────────────────────────────────────────╯
ZeroDivisionError: division by zero
"""
CPYTHON = """\
Traceback (most recent call last):
  File "/a/train.py", line 20, in <module>
    main()
  File "/a/train.py", line 7, in main
    return 1 / x
ZeroDivisionError: division by zero
"""
STRUCTLOG = json.dumps(
    {
        "event": "failed",
        "exception": [
            {
                "exc_type": "ZeroDivisionError",
                "exc_value": "division by zero",
                "frames": [
                    {"filename": "/a/train.py", "lineno": 20, "name": "<module>"},
                    {"filename": "/a/train.py", "lineno": 7, "name": "main"},
                ],
            }
        ],
    }
)
LAYOUTS = {
    "loguru": LOGURU,
    "rich": RICH,
    "rich-ascii": RICH.translate(str.maketrans("╭╮╰╯─│❱", "++++-|>")),
    "json": json.dumps({"level": "error", "exc_info": CPYTHON}),
    "json-deep": "trainer | " + json.dumps({"error": {"stack_trace": CPYTHON}}),
    "structlog": STRUCTLOG,
    "escaped": f"level=error exc={CPYTHON!r}",
    "colours": CPYTHON.replace("ZeroDivisionError", "\x1b[1;35mZeroDivisionError\x1b[0m"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "[rank1]: ", "10.0.0.1: "])
def test_layouts_of_other_printers_are_read(layout: str, prefix: str) -> None:
    found = last_traceback(prefixed(LAYOUTS[layout], prefix) + "after\n")
    assert found.last_line == "ZeroDivisionError: division by zero"
    assert found.frames == (("train.py", "<module>"), ("train.py", "main"))


@pytest.mark.parametrize(
    ("frames", "role"),
    [
        (
            '  File "<string>", line 1, in <module>\n  File "/l/multiprocessing/spawn.py", line 122, in spawn_main\n',
            "CHILD",
        ),
        ('  File "/l/multiprocessing/process.py", line 314, in _bootstrap\n    self.run()\n', "CHILD"),
        ('  File "/l/threading.py", line 1045, in _bootstrap_inner\n    self.run()\n', "THREAD"),
        ('  File "/w/process.py", line 3, in step\n    f()\n', "MAIN"),
    ],
)
def test_role_of_an_unmarked_traceback_is_known_by_its_outermost_frames(frames: str, role: str) -> None:
    own = 'Traceback (most recent call last):\n  File "/w/t.py", line 1, in <module>\n    f()\nKeyError: 1\n'
    text = f"{own}step\nTraceback (most recent call last):\n{frames}EOFError: Ran out of input\n"
    assert [each.role.name for each in tracebacks.all_tracebacks(text)] == ["MAIN", role]
