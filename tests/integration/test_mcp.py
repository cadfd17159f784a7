"""`torchfab mcp`, driven by the reference client: ten faults, each made or recorded, and what the tools say of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters, stdio_client
from mcp_types import TextContent

from tests.integration.fab import QUICK_TORCH, Fab
from tests.integration.jobs import host_line
from tests.json_documents import problems
from tests.recorded import corpus

# Rank 1 raises an exception, rank 0 hangs.
FAILS = """import os, time
print("step=1/10", flush=True)
if os.environ["RANK"] == "1": raise ValueError("bad batch 17")
def wait_for_data(): time.sleep(600)
wait_for_data()
"""
RECORDED = ("deepspeed-del-after-oom", "duplicate-gpu", "port-in-german", "quota")
Call = Callable[..., Awaitable[Any]]


class Tools:
    """The tools of a server, called by the reference client."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def __call__(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool that must succeed; return its document, or its text."""
        result = await self.client.call_tool(name, arguments)
        assert not result.is_error, result
        if result.structured_content is None:
            return _text(result)
        document = result.structured_content
        assert json.loads(result.content[0].text) == document  # type: ignore[union-attr]
        if name in ("status", "why", "profile", "top"):
            assert problems(name, document) == []
        return document

    async def error(self, name: str, /, **arguments: Any) -> str:
        """Call a tool that must fail; return its error."""
        result = await self.client.call_tool(name, arguments)
        assert result.is_error, result
        return _text(result)


def _text(result: Any) -> str:
    return "\n".join(each.text for each in result.content if isinstance(each, TextContent))


def serve(fab: Fab, use: Callable[[Tools], Awaitable[None]], *flags: str) -> None:
    """Run a server on the launch machine, as a client of agents does, and use its tools."""
    program, *args = fab.argv("mcp", *flags)
    env = {**os.environ, "FABRIC_TORCHFAB_RECORDS": str(fab.records), "PYTHONPATH": str(QUICK_TORCH)}
    server = StdioServerParameters(command=program, args=args, env=env, cwd=str(fab.workdir))

    async def main() -> None:
        with anyio.fail_after(200):
            async with Client(stdio_client(server)) as client:
                await use(Tools(client))

    anyio.run(main)


def recorded_job(fab: Fab, case: corpus.Case) -> str:
    """Make a job that ended as a recorded one: the files of job `bad`, with other last words of rank 1."""
    ((_, attributes, text),) = case.parts
    name = case.name
    shutil.copytree(fab.records / "bad", fab.records / name)
    (folder,) = (fab.node_dir / "jobs").glob("bad-*")
    job_id = f"{name}-{folder.name.rpartition('-')[2]}"
    for path in (fab.records / name).glob("*.json"):
        path.write_text(path.read_text().replace(folder.name, job_id).replace('"name": "bad"', f'"name": "{name}"'))
    made = Path(shutil.copytree(folder, folder.with_name(job_id)))
    for path in made.glob("*/stop.json"):
        path.unlink()
    rank = made / "node-1" / "rank-1"
    (rank / "output.log").write_text(text)
    (rank / "timeline").unlink()
    ended = json.loads((rank / "exit.json").read_text())
    (rank / "exit.json").write_text(json.dumps({**ended, "code": int(attributes["exit"])}))
    for path in (fab.records / name, made):
        fab.own(path)
    return name


def test_an_agent_finds_out_about_ten_faults(fab: Fab) -> None:
    fab.write("fails.py", FAILS)
    hosts = f"{host_line(fab, 0)},{host_line(fab, 1)}"
    cases = [each for each in corpus.cases("known") if each.name in RECORDED]
    assert len(cases) == len(RECORDED)

    async def use(tools: Tools) -> None:
        # 1 to 3: bad calls, which start nothing.
        assert "no job 'nope' was launched" in await tools.error("why", job="nope")
        assert "did you mean lines?" in await tools.error("logs", line=3)
        error = await tools.error("launch", command=["missing.py"], launcher="per-gpu", name="typo", hosts=hosts)
        assert "missing.py" in error
        assert "Traceback" not in error
        assert (await tools("jobs"))["jobs"] == []
        # 4: a rank raises an exception. 5: the other one hangs.
        words = {"command": ["fails.py"], "launcher": "per-gpu", "hosts": hosts, "env": {"WORD": "x y"}}
        text = await tools("launch", name="bad", **words)
        assert "job bad: 2 ranks on 2 nodes, started" in text
        with anyio.fail_after(30):
            while not (status := await tools("status", job="bad"))["first_failure"]:
                await anyio.sleep(0.2)
        assert (status["state"], status["first_failure"]["rank"]) == ("failed", 1)
        why = await tools("why")
        assert (why["cause"]["kind"], why["first"]["rank"]) == ("script", 1)
        assert why["first"]["exception"] == "ValueError: bad batch 17"
        assert "ValueError: bad batch 17" in await tools("logs", job="bad", rank=1)
        stacks = await tools("stacks", rank="0")
        assert "wait_for_data" in stacks["groups"][0]["doing"]
        assert "ranks" not in stacks
        assert "no process of it is left" in await tools("stop", job="bad", grace=0)
        # 6 to 9: recorded ones; 10: a host that cannot be reached.
        for case in cases:
            found = await tools("why", job=recorded_job(fab, case))
            assert found["cause"]["kind"] == case.kind, (case.name, found)
            assert case.words in found["cause"]["words"] + (found["first"]["exception"] or ""), (case.name, found)
        doctor = await tools("doctor", hosts="nowhere.invalid")
        assert (doctor["ok"], doctor["findings"][0]["kind"]) == (False, "unreachable")

    serve(fab, use, "--allow", "launch,stop")
