"""Frames of a script are told from those of libraries."""

from __future__ import annotations

import pytest

from torchfab.why.frames import crashed_in, innermost_of_script, is_of_script

SITE = "/opt/venv/lib/python3.11/site-packages/torch/nn/modules/module.py"
LIBRARY = (SITE, "/usr/lib/python3.11/os.py", "<frozen runpy>", "pyarrow/io.pxi", "/opt/venv/bin/torchrun", "<string>")


@pytest.mark.parametrize("path", LIBRARY)
def test_file_of_a_library_is_not_of_the_script(path: str) -> None:
    assert not is_of_script(path)
    frames = ['  File "/work/train.py", line 7, in <module>', f'  File "{path}", line 9, in inner']
    assert innermost_of_script(frames) == "/work/train.py:7, in <module>"


@pytest.mark.parametrize("path", ["train.py", "./a/train.py", "/home/my user/lib/train.py", "/opt/nemo/train.py"])
def test_innermost_file_of_the_script_is_named(path: str) -> None:
    frames = ['  File "/work/run.py", line 1, in <module>', f'  File "{path}", line 7, in step', "    loss()"]
    assert innermost_of_script(frames) == f"{path}:7, in step"


def test_no_frame_of_a_script_is_no_place() -> None:
    assert innermost_of_script([f'  File "{SITE}", line 9, in forward']) == ""
    assert innermost_of_script([]) == ""


@pytest.mark.parametrize("prefix", ["", "[rank1]: "])
def test_crash_is_located_by_the_thread_that_crashed(prefix: str) -> None:
    report = [
        "Fatal Python error: Segmentation fault",
        "Thread 0x00007f2a (most recent call first):",
        '  File "/usr/lib/python3.11/threading.py", line 331 in wait',
        "Current thread 0x00007f1 (most recent call first):",
        f'  File "{SITE}", line 44 in forward',
        '  File "/work/train.py", line 90 in main',
        "",
        '  File "/work/other.py", line 1 in after',
    ]
    assert crashed_in("\n".join(prefix + line for line in report)) == "/work/train.py:90, in main"
    assert crashed_in("\n".join([*report[3:5], ""])) == f"{SITE}:44, in forward"
    assert crashed_in("\n".join(report[:3])) == ""
