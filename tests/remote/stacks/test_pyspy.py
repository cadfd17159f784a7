"""py-spy's output: its errors and its threads."""

from __future__ import annotations

from typing import Any

import pytest

from torchfab.remote.stacks import pyspy

# What py-spy 0.4.3 printed: as an ordinary user; without CAP_SYS_PTRACE in a container; of `sleep`; of a stopped one.
RECORDED = {
    """Permission Denied: Try running again with elevated permissions by going 'sudo env "PATH=$PATH" !!'
""": "Permission Denied: Try running again with elevated permissions by going 'sudo env \"PATH=$PATH\" !!'",
    """Error: Failed to get process executable name. Check that the process is running.

Caused by:
    0: Permission denied (os error 13)
    1: Permission denied (os error 13)

Stack backtrace:
   0: <E as anyhow::context::ext::StdError>::ext_context
""": "Failed to get process executable name. Check that the process is running.: Permission denied (os error 13)",
    """Error: Failed to find python version from target process

Stack backtrace:
   0: anyhow::error::<impl anyhow::Error>::msg
""": "Failed to find python version from target process",
    "": "py-spy failed without a message",
}


@pytest.mark.parametrize(("stderr", "message"), RECORDED.items())
def test_the_error_of_py_spy_is_kept_without_its_backtrace(stderr: str, message: str) -> None:
    assert pyspy.summarize_error(stderr) == message


def test_the_main_thread_comes_first() -> None:
    frame = {"name": "f", "filename": "/a.py", "line": 3, "module": None}
    helper = {"os_thread_id": 12, "thread_id": 1, "thread_name": "Loader", "active": True, "frames": [frame]}
    main: dict[str, Any] = {"os_thread_id": 11, "thread_id": 2, "thread_name": None, "active": False, "frames": []}
    assert pyspy.parse_threads([helper, main], 11) == [
        {"name": "11", "active": False, "gil": False, "frames": []},
        {"name": "Loader", "active": True, "gil": False, "frames": [["f", "/a.py", 3]]},
    ]
