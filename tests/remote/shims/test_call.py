"""One rank of a function call: a process of its own with the files of the job, as on a node."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchfab.api import function_calls
from torchfab.core.errors import UsageError
from torchfab.remote.job.call_results import chunk, outcomes

NODE = {"job_id": "gpt2-0a1b2c3d", "node_rank": 0, "mask_key": "", "session": "gpt2-0"}
VERSION = "{}.{}".format(*sys.version_info[:2])


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Any]:
    """Return the fields of requests about a job on this node, with one process."""
    made = {**NODE, "node_dir": str(tmp_path)}
    files_of(made).mkdir(parents=True)
    (files_of(made).parent / "spec.json").write_text("{}")
    return made


def files_of(node: dict[str, Any]) -> Path:
    return Path(node["node_dir"]) / "jobs" / str(node["job_id"]) / "node-0" / "agent" / "files"


def call(node: dict[str, Any], function: Callable[..., Any], *args: Any, rank: int = 0, mb: float = 1.0) -> str:
    """Call a function as a rank does; return what it wrote on stderr."""
    command = function_calls.command_of(function, args, {}, mb)
    for name, text in command.files.items():
        path = files_of(node) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return run(node, *command.script[1:], rank=rank)


def run(node: dict[str, Any], *words: str, rank: int = 0) -> str:
    env = {**os.environ, "TORCHFAB_FILES": str(files_of(node)), "RANK": str(rank)}
    argv = [sys.executable, *words]
    return subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True, check=False).stderr


def read(node: dict[str, Any], kind: str, rank: int = 0) -> Any:
    return pickle.loads(base64.b64decode(chunk({**node, "rank": rank, "kind": kind, "offset": 0})["data"]))


def test_the_result_of_a_rank_is_its_functions(node: dict[str, Any]) -> None:
    offset = 40
    assert call(node, lambda number: {"rank": os.environ["RANK"], "sum": number + offset}, 2, rank=3) == ""
    (found,) = outcomes(node)["ranks"]
    assert (found["rank"], found["failure"], list(found["files"])) == (3, None, ["result"])
    assert read(node, "result", 3) == {"rank": "3", "sum": 42}


def test_an_exception_leaves_its_traceback_and_itself(node: dict[str, Any]) -> None:
    def load(batch: int) -> None:
        raise KeyError(f"no label in batch {batch}")

    stderr = call(node, load, 17)
    assert stderr.rstrip().endswith("KeyError: 'no label in batch 17'")
    (found,) = outcomes(node)["ranks"]
    failure = found["failure"]
    assert (failure["type"], failure["message"]) == ("KeyError", "'no label in batch 17'")
    assert failure["traceback"].startswith("Traceback (most recent call last):\n")
    assert "/files/call.py" not in failure["traceback"]
    assert repr(read(node, "failure")) == "KeyError('no label in batch 17')"


def test_an_exception_that_cannot_be_pickled_leaves_its_traceback(node: dict[str, Any]) -> None:
    def fail() -> None:
        error = ValueError("bad")
        error.lock = __import__("threading").Lock()  # type: ignore[attr-defined]
        raise error

    call(node, fail)
    (found,) = outcomes(node)["ranks"]
    assert (found["failure"]["message"], found["files"]) == ("bad", {})


def test_an_earlier_failure_of_a_restarted_rank_is_gone(node: dict[str, Any]) -> None:
    call(node, lambda: 1 / 0)
    call(node, lambda: 7)
    (found,) = outcomes(node)["ranks"]
    assert (found["failure"], list(found["files"])) == (None, ["result"])


def test_results_are_limited_and_must_be_picklable(node: dict[str, Any]) -> None:
    call(node, lambda: b"x" * 3_000_000)
    (found,) = outcomes(node)["ranks"]
    assert found["failure"]["type"] == "TooLargeError"
    assert "the result is larger than 1 MiB; write it to a file" in found["failure"]["message"]
    call(node, lambda: (each for each in "ab"))
    (found,) = outcomes(node)["ranks"]
    assert "the result, of type generator, cannot be pickled" in found["failure"]["message"]
    assert [path.name for path in files_of(node).glob("result-*")] == []


def test_large_results_come_in_chunks(node: dict[str, Any]) -> None:
    call(node, lambda: os.urandom(9 * 2**20), mb=10)
    (found,) = outcomes(node)["ranks"]
    data = b""
    while len(data) < found["files"]["result"]:
        part = chunk({**node, "rank": 0, "kind": "result", "offset": len(data)})["data"]
        assert len(part) <= 6 * 2**20
        data += base64.b64decode(part)
    assert len(pickle.loads(data)) == 9 * 2**20


def test_another_version_of_python_calls_nothing(node: dict[str, Any]) -> None:
    call(node, lambda: 7)
    (files_of(node) / "result-0.pickle").unlink()
    given = json.loads((files_of(node) / "call.json").read_text())
    (files_of(node) / "call.json").write_text(json.dumps({**given, "python": "2.7"}))
    assert f"is Python {VERSION}, and the function was pickled by Python 2.7" in run(node, f"{files_of(node)}/call.py")
    assert outcomes(node) == {"ranks": []}


def test_files_that_the_job_did_not_write_are_not_read(node: dict[str, Any], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(pickle.dumps("planted"))
    (files_of(node) / "result-0.pickle").symlink_to(elsewhere)
    (files_of(node) / "result-1.pickle").mkdir()
    (files_of(node) / "result-x.pickle").write_bytes(b"x")
    assert outcomes(node) == {"ranks": []}
    for rank in (0, 1, 2):
        problem = chunk({**node, "rank": rank, "kind": "result", "offset": 0})["problems"][0]["what"]
        assert problem == f"result-{rank}.pickle no longer exists on the node"
    with pytest.raises(ValueError, match="invalid literal"):
        chunk({**node, "rank": "../0", "kind": "result", "offset": 0})


def test_files_of_another_user_are_not_read(node: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    call(node, lambda: 7)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert outcomes(node) == {"ranks": []}


def test_a_cloudpickle_of_the_nodes_own_is_not_used(node: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "own" / "cloudpickle").mkdir(parents=True)
    (tmp_path / "own" / "cloudpickle" / "__init__.py").write_text("raise ImportError('an old one')\n")
    call(node, lambda: 7)
    (files_of(node) / "result-0.pickle").unlink()
    head = f"import runpy, sys; sys.path.insert(0, {str(tmp_path / 'own')!r}); "
    assert run(node, "-c", f"{head}runpy.run_path({f'{files_of(node)}/call.py'!r}, run_name='torchfab_call')") == ""
    assert read(node, "result") == 7


# ---- what is sent


def train(_: object) -> None:
    """Stand for a function of a module."""


def test_what_cannot_be_pickled_is_named_before_anything_starts() -> None:
    with pytest.raises(UsageError, match="train or one of its arguments cannot be pickled: TypeError: cannot pickle"):
        function_calls.command_of(train, (threading.Lock(),), {}, 1.0)


def test_data_that_is_too_large_for_a_launch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_calls, "MOST_CALL_BYTES", 1000)
    with pytest.raises(UsageError, match=r"train and its arguments are .* when compressed, and at most"):
        function_calls.command_of(train, (os.urandom(2000),), {}, 1.0)


def test_the_command_names_the_function_and_carries_its_version() -> None:
    command = function_calls.command_of(train, (1,), {}, 2.0)
    assert command.script[:3] == ("python", "-u", "-c")
    assert command.script[3].startswith("# train(…)\nimport os, runpy\n")
    assert command.python_version == VERSION
    assert set(command.files) >= {"call.py", "call.json", "call.pickle", "cloudpickle/cloudpickle.py"}
    assert json.loads(command.files["call.json"])["limit"] == 2 * 2**20
    assert function_calls.name_of(lambda: 0) == "<lambda>"


def test_modules_beside_the_script_are_found_on_the_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path)
    for first, folders in ((str(tmp_path / "src"), [str(tmp_path / "src")]), ("", []), ("/usr/lib", [])):
        monkeypatch.setattr(sys, "path", [first, *sys.path])
        assert json.loads(function_calls.command_of(train, (1,), {}, 1.0).files["call.json"])["path"] == folders
