"""Parts of the benchmark: each yields steps (a key and a function that measures), in rounds that alternate tools."""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launching import tools
from launching.hosts import Hosts
from launching.running import Cost, run
from launching.store import Key
from launching.tools import HERE, OURS, ROOT, Command

FAN_OUT_TOOLS = (OURS, "pdsh", "clush", "parallel-ssh", "asyncssh", "xargs", "mpirun", "seed")
WHOLE_TOOLS = FAN_OUT_TOOLS
MOST_RANKS = 2048  # supervised interpreters, sshds and tmux servers that fit into 24 GB
_SETTLE_S = 20.0


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Parameters
    ----------
    hosts : tuple of int
        Numbers of hosts.
    rounds : int
        Rounds of each measurement.
    limit_s : float
        Time limit of each command.
    venv : Path
        Environment with the compared libraries.
    tools : tuple of str
        Tools to compare.
    key_exchanges : tuple of str
        Names in `hosts.KEY_EXCHANGES`.
    program : Path
        The working tree of torchfab that the parts `ranks` and `records` measure.
    """

    hosts: tuple[int, ...]
    rounds: int
    limit_s: float
    venv: Path
    tools: tuple[str, ...]
    key_exchanges: tuple[str, ...]
    program: Path = ROOT


Step = tuple[Key, Callable[[], dict[str, Any]]]
Part = Callable[[Options], Iterator[Step]]


def fan_out(options: Options) -> Iterator[Step]:
    """`true` on every host."""
    for key_exchange in options.key_exchanges:
        for count in options.hosts:
            yield from _on_hosts(options, count, key_exchange, "fan-out", ("true",))


def whole(options: Options) -> Iterator[Step]:
    """From the user's command to running ranks: one per host, and eight per host."""
    for key_exchange in options.key_exchanges:
        for count in options.hosts:
            kinds = ("per-node", "per-gpu") if 8 * count <= MOST_RANKS else ("per-node",)
            yield from _on_hosts(options, count, key_exchange, "whole", kinds)


def _on_hosts(options: Options, count: int, key_exchange: str, part: str, kinds: tuple[str, ...]) -> Iterator[Step]:
    """Yield the steps for one number of hosts; the hosts stay up between steps."""
    keys = [
        {"part": part, "kind": kind, "hosts": count, "kex": key_exchange, "tool": tool, "round": number}
        for number in range(options.rounds)
        for kind in kinds
        for tool in options.tools
    ]
    with LazyHosts(count, key_exchange) as hosts:
        for key in keys:
            measure = _fan_out_once if part == "fan-out" else _whole_once
            yield key, lambda key=key, measure=measure: measure(hosts.up(), key, options)  # type: ignore[misc]


class LazyHosts:
    """Hosts that start when the first step needs them."""

    def __init__(self, count: int, key_exchange: str = "curve25519") -> None:
        self.count, self.key_exchange = count, key_exchange
        self._hosts: Hosts | None = None

    def up(self) -> Hosts:
        """Return the hosts; start them at the first call."""
        if self._hosts is None:
            self._hosts = Hosts(self.count, self.key_exchange)
            self._warm_up(self._hosts)
        return self._hosts

    def _warm_up(self, hosts: Hosts) -> None:
        # Otherwise the first tool pays for caches that the others find warm.
        files, some = hosts.files, hosts.files.hostfile(min(self.count, 64))
        _run(tools.fan_out("xargs", files, some, "true", Path("/nowhere")), 60)

    def __enter__(self) -> LazyHosts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._hosts:
            self._hosts.down()


def _run(command: Command, limit_s: float) -> Cost:
    return run(command.argv, limit_s, dict(command.env), ROOT)


def _costs(cost: Cost) -> dict[str, Any]:
    values = {"wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "memory_mb": cost.memory_mb, "code": cost.code}
    return values if cost.code == 0 else {**values, "said": cost.output_tail[-600:]}


def _fan_out_once(hosts: Hosts, key: Key, options: Options) -> dict[str, Any]:
    files, before = hosts.files, hosts.ask("clear")["cpu_s"]
    command = tools.fan_out(key["tool"], files, files.hostfile(key["hosts"]), key["kind"], options.venv)
    cost = _run(command, options.limit_s)
    return {**_costs(cost), "nodes_cpu_s": hosts.ask("clear")["cpu_s"] - before}


def _whole_once(hosts: Hosts, key: Key, options: Options) -> dict[str, Any]:
    ranks = 8 if key["kind"] == "per-gpu" else 0
    wanted = key["hosts"] * max(1, ranks)
    before = hosts.ask("clear")["cpu_s"]
    starts = Path(tempfile.mkdtemp(prefix="starts-", dir=hosts.folder))
    name = f"{key['kind']}-{key['hosts']}-{starts.name[-8:].replace('_', 'x')}"
    command = tools.whole(key["tool"], hosts.files, key["hosts"], ranks, starts, options.venv, name)
    cost = _run(command, options.limit_s)
    found = _started(starts, wanted, _SETTLE_S if cost.code == 0 else 2.0)
    values = _costs(cost) | {"missing": wanted - len(found), "nodes_cpu_s": hosts.ask("clear")["cpu_s"] - before}
    if found:
        values |= {"running_s": found[-1] - cost.begun, "skew_s": found[-1] - found[0]}
    shutil.rmtree(hosts.folder / "jobs", ignore_errors=True)
    for home in hosts.files.hosts:
        shutil.rmtree(hosts.folder / home / ".torchfab", ignore_errors=True)
    return values


def _started(starts: Path, wanted: int, patience_s: float) -> list[float]:
    """Return the start times of the ranks, once all have started, or no new one has for `patience_s`."""
    count_before, since = -1, time.monotonic()
    while time.monotonic() < since + patience_s:
        names = os.listdir(starts)
        if len(names) >= wanted:
            break
        if len(names) != count_before:
            count_before, since = len(names), time.monotonic()
        time.sleep(0.1)
    return sorted(float(name.rpartition("-")[0]) for name in os.listdir(starts))


# ---- the life of a job


def life(options: Options) -> Iterator[Step]:
    """`status`, `logs` and `stop` of a job that runs on every host, beside bare logins on them."""
    for count in options.hosts:
        with LazyHosts(count) as hosts, tempfile.TemporaryDirectory() as folder:
            for number in range(options.rounds):
                key = {"part": "life", "hosts": count, "round": number}
                yield (
                    key,
                    lambda number=number, hosts=hosts, folder=folder: _life_once(  # type: ignore[misc]
                        hosts.up(), hosts.count, number, Path(folder), options
                    ),
                )


def _life_once(hosts: Hosts, count: int, number: int, folder: Path, options: Options) -> dict[str, Any]:
    hostfile, name = hosts.files.hostfile(count), f"life-{number}"
    job = ("--name", name, "--workdir", str(HERE), "--python", sys.executable, "--gpufile", str(hostfile))
    launched = _run(tools.fab(hosts.files, "launch-per-gpu", *job, "--", "rank.py", str(folder), "3600"), 600)
    if launched.code:
        return {**_costs(launched), "step": "launch"}
    bare = tools.fan_out(OURS, hosts.files, hostfile, "true", options.venv)
    costs: dict[str, list[Cost]] = {"bare": [], "status": [], "logs": []}
    for _ in range(3):
        costs["bare"].append(_run(bare, options.limit_s))
        costs["status"].append(_run(tools.fab(hosts.files, "status", name), options.limit_s))
        costs["logs"].append(_run(tools.fab(hosts.files, "logs", name), options.limit_s))
    stop = _run(tools.fab(hosts.files, "stop", name), options.limit_s)
    values = {f"{what}_s": statistics.median(each.wall_s for each in found) for what, found in costs.items()}
    values |= {f"{what}_cpu_s": statistics.median(each.cpu_s for each in found) for what, found in costs.items()}
    codes = [each.code for found in costs.values() for each in found] + [stop.code]
    hosts.ask("clear")
    return values | {
        "stop_s": stop.wall_s,
        "stop_cpu_s": stop.cpu_s,
        "code": max(codes),
        "said": stop.output_tail[-300:],
    }


def dead(options: Options) -> Iterator[Step]:
    """One host that accepts connections and sends nothing, among live ones."""
    for count in options.hosts:
        with LazyHosts(count) as hosts:
            for number in range(options.rounds):
                key = {"part": "dead", "hosts": count, "round": number}
                yield key, lambda hosts=hosts: _dead_once(hosts.up(), hosts.count, options)  # type: ignore[misc]


def _dead_once(hosts: Hosts, count: int, options: Options) -> dict[str, Any]:
    timeout_s = 5
    with socket.socket() as silent:
        silent.bind(("127.81.0.1", hosts.files.port))
        silent.listen()
        alive, mixed = hosts.files.hostfile(count), hosts.folder / "hosts-dead"
        lines = alive.read_text().splitlines(keepends=True)
        mixed.write_text("".join([lines[0], "127.81.0.1\n", *lines[1:]]))
        found = {}
        for what, hostfile in (("alive", alive), ("dead", mixed)):
            flags = ("--hostfile", str(hostfile), "--nproc-per-node", "1", "--workdir", str(HERE), "--dry-run")
            command = tools.fab(hosts.files, "-t", str(timeout_s), "launch-per-node", *flags, "--", "rank.py", "x", "0")
            found[what] = _run(command, options.limit_s)
    costs = {f"{what}_s": cost.wall_s for what, cost in found.items()}
    return {**costs, "timeout_s": timeout_s, "code": found["alive"].code, "refused": found["dead"].code}


# ---- on one machine


def lines(options: Options) -> Iterator[Step]:
    """Log lines per second that one core merges, from 64 hosts with 8 ranks each: alike, different, and a flood."""
    for kind in ("alike", "different", "flood"):
        for number in range(options.rounds):
            key = {"part": "lines", "kind": kind, "round": number}
            yield key, lambda kind=kind: _run_program("lines.py", kind)  # type: ignore[misc]


def _run_program(program: str, *args: str) -> dict[str, Any]:
    cost = run((sys.executable, str(HERE / program), *args), 300, cwd=ROOT)
    if cost.code:
        return _costs(cost)
    values: dict[str, Any] = json.loads(cost.output_tail.strip().splitlines()[-1])
    return {**values, "memory_mb": cost.memory_mb}


def start_up(options: Options) -> Iterator[Step]:
    """`fab --list`, and `fab status` of a job on this machine; and the time of the imports."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(max(5, options.rounds)):
            key = {"part": "start-up", "round": number}
            yield key, lambda: _start_up_once(Path(folder))
    yield {"part": "imports", "round": 0}, _imports


def _start_up_once(folder: Path) -> dict[str, Any]:
    env = {"FABRIC_TORCHFAB_RECORDS": str(folder / "jobs"), "FABRIC_TORCHFAB_NODE_DIR": str(folder / "node")}
    fab = (sys.executable, "-m", "fabric")
    if not (folder / "jobs").exists():
        gpus = folder / "gpus"
        gpus.write_text("localhost\n")
        launch = ("launch-per-gpu", "--name", "local", "--gpufile", str(gpus), "--workdir", str(HERE))
        done = run((*fab, *launch, "--", "rank.py", str(folder), "0"), 120, env, ROOT)
        if done.code:
            return _costs(done)
    listed, status = run((*fab, "--list"), 60, env, ROOT), run((*fab, "status", "local"), 60, env, ROOT)
    bare = run((sys.executable, "-c", "import fabric.main"), 60, env, ROOT)
    return {
        "list_s": listed.wall_s,
        "status_s": status.wall_s,
        "import_fabric_s": bare.wall_s,
        "code": max(listed.code, status.code),
    }


def _imports() -> dict[str, Any]:
    argv = [sys.executable, "-X", "importtime", "-m", "fabric", "--list"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line]
    found = [(int(own), int(total), name.strip()) for own, total, name in rows if own.strip().isdigit()]
    packages: dict[str, int] = {}
    for own, _, name in found:
        packages[name.split(".")[0]] = packages.get(name.split(".")[0], 0) + own
    top = sorted(packages.items(), key=lambda each: -each[1])[:12]
    return {"packages": [[name, us / 1000] for name, us in top], "total_ms": sum(own for own, _, _ in found) / 1000}


def node(options: Options) -> Iterator[Step]:
    """Cost of torchfab on a node: its program for a connection, and a supervisor in addition to its process."""
    for number in range(max(5, options.rounds)):
        yield {"part": "node", "round": number}, lambda: _run_program("node.py")


def ranks(options: Options) -> Iterator[Step]:
    """Cost of one rank more on a node, beyond the rank itself."""
    yield {"part": "ranks", "round": 0}, lambda: _run_program("per_rank.py", str(options.program))


def records(options: Options) -> Iterator[Step]:
    """`fab jobs` with 1,000 records, and `fab logs` of a log of 2 GB, on this machine."""
    yield {"part": "records", "round": 0}, lambda: _run_program("on_this_machine.py", str(options.program))


def first_step(options: Options) -> Iterator[Step]:
    """Time from launch-per-node on two hosts to the first step of train_llm.py, and its phases."""
    with LazyHosts(2) as hosts:
        for number in range(options.rounds):
            yield {"part": "first-step", "round": number}, lambda: _first_step_once(hosts.up(), options)


def _first_step_once(hosts: Hosts, options: Options) -> dict[str, Any]:
    name = f"first-{time.time_ns() % 10**9}"
    hostfile = hosts.folder / "hosts-first"
    hostfile.write_text("".join(f"{host}\n" for host in hosts.files.hosts))
    save = hosts.folder / name
    script = (str(ROOT / "train_llm.py"), "--max-steps", "2", "--log-freq", "1", "--ckpt-freq", "0",
              "--experiment-name", "x", "--save-dir", str(save), "--dataset-cache-root", str(hosts.folder))  # fmt: skip
    flags = ("--name", name, "--workdir", str(ROOT), "--python", sys.executable, "--hostfile", str(hostfile))
    ranks = ("--nproc-per-node", "1", "--env", "GLOO_SOCKET_IFNAME=lo")
    command = tools.fab(hosts.files, "launch-per-node", *flags, *ranks, "--", *script)
    launched = _run(command, options.limit_s)
    waited = _run(tools.fab(hosts.files, "wait", name), options.limit_s)
    if launched.code or waited.code:
        return _costs(launched) | {
            "code": max(launched.code, waited.code),
            "said": (launched.output_tail + waited.output_tail)[-600:],
        }
    return _times(hosts.folder, name, launched, save / "x" / "log.jsonl")


def _times(folder: Path, name: str, launched: Cost, log: Path) -> dict[str, Any]:
    events = [json.loads(line) for line in (folder / "jobs" / name / "events.jsonl").read_text().splitlines()]
    at = {event["event"]: event["time"] for event in events}
    agents = [json.loads(path.read_text()) for path in folder.glob("*/.torchfab/jobs/*/node-*/agent/started.json")]
    ranks = [
        each
        for path in folder.glob("*/.torchfab/jobs/*/node-*/agent/ranks.json")
        for each in json.loads(path.read_text())
    ]
    first = json.loads(log.read_text().splitlines()[0])
    shutil.rmtree(folder / "jobs", ignore_errors=True)
    for home in folder.glob("*/.torchfab"):
        shutil.rmtree(home)
    return {
        "prepared_s": at["planned"] - launched.begun,
        "agents_s": max(each["time"] for each in agents) - at["planned"],
        "ranks_s": max(each["started"] for each in ranks) - max(each["time"] for each in agents),
        "step_s": first["time"] - max(each["started"] for each in ranks),
        "total_s": first["time"] - launched.begun,
        "command_s": launched.wall_s,
        "first": {key: value for key, value in first.items() if isinstance(value, (int, float))},
        "code": 0,
    }


PARTS: dict[str, Part] = {
    "fan-out": fan_out,
    "whole": whole,
    "life": life,
    "dead": dead,
    "lines": lines,
    "start-up": start_up,
    "node": node,
    "ranks": ranks,
    "records": records,
    "first-step": first_step,
}
