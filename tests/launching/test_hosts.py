"""The hosts of a command: `-H`, files in any dialect, groups."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from torchfab.cli.flags import GpuLaunchFlags, LaunchFlags
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import InventoryError, UsageError
from torchfab.launching import hosts
from torchfab.launching.context import CommandContext

INVENTORY = "[gpu]\ng1\ng2\n[cpu]\nc1\n"


@pytest.fixture
def ctx(tmp_path: Path) -> CommandContext:
    config = {"records": "jobs", "hostfile": "hosts", "gpufile": "gpus", "node_dir": ".torchfab"}
    return CommandContext(config, tmp_path, str(tmp_path), time.time(), "0a1b2c3d", {}, ConnectionSettings())


def names(ctx: CommandContext, hostfile: str = "", file_format: str = "") -> list[str]:
    return [node.host for node in hosts.read_nodes(hostfile, ctx, file_format)]


def test_hosts_of_the_command_line_are_slots_and_may_be_ranges(ctx: CommandContext) -> None:
    nodes, slots = hosts.read_inventory(GpuLaunchFlags(), replace(ctx, hosts="a,node[1,3],a"))
    assert [node.host for node in nodes] == ["a", "node1", "node3"]
    assert [slot.node_rank for slot in slots] == [0, 1, 2, 0]


def test_nothing_is_printed_for_a_hosts_file_of_torchfab(
    ctx: CommandContext, capsys: pytest.CaptureFixture[str]
) -> None:
    (ctx.root / "hosts").write_text("a slots=2\nb\n")
    assert names(ctx) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


def test_the_dialect_of_a_file_is_printed(ctx: CommandContext, capsys: pytest.CaptureFixture[str]) -> None:
    (ctx.root / "inventory").write_text(INVENTORY)
    assert names(ctx, "inventory") == ["g1", "g2", "c1"]
    path = ctx.root / "inventory"
    expected = f"{path}: read as an inventory of ansible: 3 hosts of 2 groups; -H @gpu takes one\n"
    assert capsys.readouterr().err == expected


def test_a_host_that_is_left_out_is_printed(ctx: CommandContext, capsys: pytest.CaptureFixture[str]) -> None:
    (ctx.root / "hosts").write_text("a\nb slots=0\n")
    assert names(ctx) == ["a"]
    assert capsys.readouterr().err == f"note: {ctx.root}/hosts:2: slots=0: b is not used\n"


def test_groups_of_the_command_line_are_those_of_the_file(ctx: CommandContext) -> None:
    (ctx.root / "hosts").write_text(INVENTORY)
    assert names(replace(ctx, hosts="@gpu")) == ["g1", "g2"]
    assert names(replace(ctx, hosts="@cpu,@gpu"), "hosts") == ["c1", "g1", "g2"]
    with pytest.raises(InventoryError, match="has no group 'gpus'; did you mean @gpu"):
        names(replace(ctx, hosts="@gpus"))


@pytest.mark.parametrize("text", ["a\nb\n", "it's broken\n", ""])
def test_groups_of_clustershell_are_used_if_the_file_has_none(ctx: CommandContext, text: str) -> None:
    (ctx.root / "hosts").write_text(text)
    with pytest.raises(InventoryError, match=r"-H: @gpu is a group of ClusterShell|-H: @gpu: ClusterShell"):
        names(replace(ctx, hosts="@gpu"))


def test_the_format_may_be_named(ctx: CommandContext) -> None:
    (ctx.root / "hosts").write_text("a:4\n")
    flags = LaunchFlags(hostfile_format="mpich")
    assert [node.slots for node in hosts.read_inventory(flags, ctx)[0]] == [4]
    assert [node.slots for node in hosts.read_inventory(flags, replace(ctx, hosts="a:2,b:2"))[0]] == [2, 2]
    with pytest.raises(UsageError, match="--hostfile-format must be one of"):
        names(ctx, "", "mpihc")


def test_the_node_file_of_the_current_pbs_job_is_recognised(ctx: CommandContext) -> None:
    path = ctx.root / "nodes"
    path.write_text("a\na\nb\n")
    with pytest.raises(InventoryError, match="a is already listed"):
        names(ctx, "nodes")
    ctx = replace(ctx, environ={"PBS_NODEFILE": str(path)})
    assert [node.slots for node in hosts.read_nodes("nodes", ctx)] == [2, 1]


def test_a_host_with_its_own_workdir_has_its_jobs_there(ctx: CommandContext) -> None:
    (ctx.root / "hosts").write_text("a workdir=/data\nb\n")
    assert [node.node_dir for node in hosts.read_nodes("", ctx)] == ["/data/.torchfab", ""]
    absolute = replace(ctx, config={**ctx.config, "node_dir": "/scratch"})
    assert hosts.read_nodes("", absolute)[0].node_dir == "/scratch"
