"""Explain why a process has no stack, and how to fix it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchfab.stacks.model import RankStack

_FAULTHANDLER = "or let the script answer a signal: import faulthandler, signal; faulthandler.register(signal.SIGUSR2)"


def explain(stack: RankStack, rights: Mapping[str, Any]) -> tuple[str, str]:
    """Explain why a rank has no stack.

    Parameters
    ----------
    stack : RankStack
        A running rank without a stack.
    rights : Mapping
        The node's report: `ptrace_scope`, `cap_sys_ptrace`, `uid`.

    Returns
    -------
    reason, fix : str
        The fix is empty if none is known.
    """
    reason, fix = _explain_py_spy(stack, rights)
    return (f"{reason}; and by signal: {stack.signal}" if stack.signal else reason), fix


def _explain_py_spy(stack: RankStack, rights: Mapping[str, Any]) -> tuple[str, str]:
    problem = stack.problem
    if stack.tracer:
        return f"a debugger or strace holds it (pid {stack.tracer})", f"end that one first: kill {stack.tracer}"
    if "permission denied" in problem.lower() or "operation not permitted" in problem.lower():
        return _explain_denial(rights)
    if problem == "there is no py-spy":
        install = "pip install 'torchfab[stacks]' here, which is sent to nodes; or py-spy beside the training there"
        return "no py-spy there, and none that runs there could be sent", f"{install}; {_FAULTHANDLER}"
    if "python version" in problem.lower() or "find a python" in problem.lower():
        return f"py-spy does not recognise it as a Python program ({problem})", _FAULTHANDLER
    if problem.startswith("no answer"):
        return (
            f"{problem} (state {stack.state})",
            "raise the time limit: --timeout 60; or read the kernel log on the node: dmesg",
        )
    return f"py-spy: {problem}", _FAULTHANDLER


def _explain_denial(rights: Mapping[str, Any]) -> tuple[str, str]:
    scope, may = rights.get("ptrace_scope", ""), rights.get("cap_sys_ptrace", False)
    denied = "the node refused to let py-spy look into it"
    if scope in ("1", "2") and not may:
        meaning = "only one's own children" if scope == "1" else "only root"
        allow = "sudo sysctl kernel.yama.ptrace_scope=0"
        return f"{denied}: kernel.yama.ptrace_scope is {scope} ({meaning})", f"on the node: {allow}; {_FAULTHANDLER}"
    if scope == "3":
        return f"{denied}: kernel.yama.ptrace_scope is 3 (nobody, until the node is restarted)", _FAULTHANDLER
    if rights.get("uid") == 0 and not may:
        return f"{denied}: this container has no CAP_SYS_PTRACE", f"start it with --cap-add SYS_PTRACE; {_FAULTHANDLER}"
    return (
        f"{denied}: it runs as another user, is private (prctl PR_SET_DUMPABLE), or a container forbids it",
        f"log in as the user who runs it, or in a container allow CAP_SYS_PTRACE; {_FAULTHANDLER}",
    )
