"""The server in this process, with the reference client and a made `fab`."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from torchfab.agents import server, tools
from torchfab.agents.tools import ACTIONS

ECHO = """import json, sys
if "--json" in sys.argv: print(json.dumps({"argv": sys.argv[1:]}))
else: print(*sys.argv[1:])
print("note: x", file=sys.stderr)
sys.exit(1 if "stop" in sys.argv else 0)
"""
FAILS = "import sys; print('error: no job\\n  fix: launch one', file=sys.stderr); sys.exit(2)"


def with_client(script: str, actions: tuple[str, ...], use: Callable[[Client], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Client(server.make_server((sys.executable, "-c", script), actions)) as client:
            await use(client)

    anyio.run(main)


def texts(result: Any) -> list[str]:
    return [each.text for each in result.content]


def test_tools_are_offered_with_hints_and_actions_only_if_allowed() -> None:
    async def reading(client: Client) -> None:
        found = (await client.list_tools()).tools
        assert [each.name for each in found] == ["jobs", "status", "logs", "why", "stacks", "profile", "doctor", "top"]
        assert all(each.annotations and each.annotations.read_only_hint for each in found)
        refused = await client.call_tool("stop", {"job": "x"})
        assert refused.is_error
        assert texts(refused) == [
            "the tool stop is not allowed\n  fix: the user may allow it: torchfab mcp --allow stop"
        ]

    async def acting(client: Client) -> None:
        found = {each.name: each.annotations for each in (await client.list_tools()).tools}
        assert found["stop"]
        assert found["launch"]
        assert (found["stop"].read_only_hint, found["stop"].destructive_hint) == (False, True)

    with_client(ECHO, (), reading)
    with_client(ECHO, ACTIONS, acting)


def test_a_call_returns_the_document_or_the_text_and_the_notes() -> None:
    async def use(client: Client) -> None:
        found = await client.call_tool("status", {"job": "gpt2"})
        assert found.structured_content == {"argv": ["status", "--json", "--job=gpt2"]}
        assert texts(found) == ['{"argv": ["status", "--json", "--job=gpt2"]}', "note: x"]
        assert texts(await client.call_tool("logs", {})) == ["logs --lines=200", "note: x"]
        failed = await client.call_tool("stop", {"job": "x"})  # some process is left
        assert (failed.is_error, texts(failed)) == (True, ["stop --job=x", "note: x"])

    with_client(ECHO, ACTIONS, use)


def test_an_error_of_a_command_is_the_result() -> None:
    async def use(client: Client) -> None:
        found = await client.call_tool("why", {})
        assert (found.is_error, texts(found)) == (True, ["error: no job\n  fix: launch one"])

    with_client(FAILS, (), use)


WAITS = """import os, signal, sys, time
def end(*_): print("rolled back", flush=True); sys.exit(130)
signal.signal(signal.SIGINT, end)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.parametrize("way", ["limit", "cancel"])
def test_a_command_that_takes_too_long_or_is_cancelled_is_interrupted(tmp_path: Path, way: str) -> None:
    ready = tmp_path / "ready"
    argv = (sys.executable, "-c", WAITS, str(ready))

    async def main() -> server.Output | None:
        async with anyio.create_task_group() as group:
            found: list[server.Output] = []

            async def work() -> None:
                found.append(await server.run(argv, 1.0 if way == "limit" else 60.0))

            group.start_soon(work)
            while not (ready.exists() and ready.read_text()):
                await anyio.sleep(0.02)
            if way == "cancel":
                group.cancel_scope.cancel()
        return found[0] if found else None

    started = time.monotonic()
    output = anyio.run(main)
    assert time.monotonic() - started < 15
    assert not Path("/proc", ready.read_text()).exists()
    if way == "limit":
        assert output is not None
        assert output.timed_out
        result = server.result(tools.find("logs", ()), output, {})
        assert texts(result)[0] == "logs was interrupted after 600 s"
