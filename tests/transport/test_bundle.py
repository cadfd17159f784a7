"""The source text of the program that runs on nodes."""

from __future__ import annotations

import ast
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchfab.transport import bundle


def test_the_program_is_plain_python_with_its_own_modules() -> None:
    code = (
        f"SOURCE = {bundle.source()!r}\n"
        + bundle.source().partition("# ---- run")[0]
        + "\nimport torchfab.remote.job.log_reader as m; print(m.__name__, m.__spec__.loader)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sys; exec(sys.stdin.read())"],
        input=code,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("torchfab.remote.job.log_reader <class ")


def test_the_command_has_the_length_of_the_program_in_bytes() -> None:
    *before, length = bundle.argv("a python")
    assert before == ["a python", "-I", "-S", "-c", bundle.BOOTSTRAP]
    assert int(length) == len(bundle.packed())


def test_the_command_is_far_below_the_limit_of_a_command_line() -> None:
    assert sum(map(len, bundle.argv("python3"))) < 1000


MODULES = sorted(path for path in bundle._REMOTE.rglob("*.py") if "shims" not in path.parts)


def without_docstrings(source: str) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
    return tree


def lines_of_statements(source: str) -> list[int]:
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_what_is_sent_of_a_module_has_the_same_statements_on_the_same_lines(path: Path) -> None:
    source = path.read_text()
    sent = bundle.without_prose(source)
    assert ast.dump(without_docstrings(sent)) == ast.dump(without_docstrings(source))
    assert lines_of_statements(sent) == lines_of_statements(source)


SOURCE = '''\
"""Prose.
"""

A = r"""
# text
"""
def f():
    """More: '\\""""."""
    # why
    return 1  # b
'''


def test_docstrings_and_comments_are_not_sent() -> None:
    before, sent = SOURCE.splitlines(), bundle.without_prose(SOURCE).splitlines()
    assert sent == ['""', "", "", *before[3:7], '    ""', "", *before[9:]]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder in which programs are kept."""
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    bundle.packed.cache_clear()
    yield tmp_path
    bundle.packed.cache_clear()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def packed_again() -> bytes:
    """Return the program as the next command gets it."""
    bundle.packed.cache_clear()
    return bundle.packed()


def test_the_program_is_made_once_and_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bundle.packed()
    assert len(files_in(kept)) == 1
    monkeypatch.setattr(bundle, "source", lambda: pytest.fail("made again"))
    assert packed_again() == made


def test_a_changed_module_makes_another_program(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.packed()
    monkeypatch.setattr(bundle, "source", lambda: "other")
    monkeypatch.setattr(bundle, "_modules", lambda: MODULES[1:])
    assert zlib.decompress(packed_again()) == b"other"


def test_a_file_that_was_cut_off_is_made_again(kept: Path) -> None:
    made = bundle.packed()
    (path,) = files_in(kept)
    path.write_bytes(path.read_bytes()[:-1])
    assert packed_again() == made


def test_nothing_is_kept_where_compiled_modules_are_not(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = bundle.packed()
    assert not files_in(kept)
    (kept / "a file").write_text("")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", str(kept / "a file"))  # where no folder can be made
    assert packed_again() == made
