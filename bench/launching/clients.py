#!/usr/bin/env python3
"""The clients that are libraries, as programs: each runs one command on every host, 64 at a time, and fails if any did.

clients.py torchfab|parallel-ssh|asyncssh SSH_CONFIG HOSTFILE COMMAND
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

AT_ONCE = 64


def settings(ssh_config: str) -> dict[str, str]:
    """Return what a benchmark's ssh config says, by the names of its keywords."""
    words = [line.split(None, 1) for line in Path(ssh_config).read_text().splitlines()]
    return {each[0]: each[1] for each in words if len(each) == 2}


def torchfab(ssh_config: str, hosts: list[str], command: str) -> int:
    """Use the connections that all commands of torchfab use, with their checks of host keys."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from torchfab.cli.executor import collect_seldom
    from torchfab.config.connection_settings import ConnectionSettings
    from torchfab.core.specs import Node
    from torchfab.transport.ssh import NodeConnection, NodeGroup, connect

    collect_seldom()  # as every fab command does
    nodes = [Node(rank, host) for rank, host in enumerate(hosts)]
    group = NodeGroup(nodes, ConnectionSettings(ssh_config=ssh_config, fanout=AT_ONCE))

    def act(connection: NodeConnection) -> int:
        connection.open()
        channel = connection.transport.open_session()
        channel.exec_command(command)
        code: int = channel.recv_exit_status()
        connect.close_connection(connection)
        return code

    return sum(result != 0 for _, result in group.as_completed(act))


def parallel_ssh(ssh_config: str, hosts: list[str], command: str) -> int:
    """Use parallel-ssh's default client (libssh2); it checks no host keys."""
    from pssh.clients import ParallelSSHClient  # type: ignore[import-not-found,unused-ignore]

    how = settings(ssh_config)
    client = ParallelSSHClient(
        hosts, user=how["User"], port=int(how["Port"]), pkey=how["IdentityFile"], pool_size=AT_ONCE, num_retries=1
    )
    output = client.run_command(command, stop_on_errors=False)
    client.join(output)
    return sum(each.exception is not None or each.exit_code != 0 for each in output)


def asyncssh(ssh_config: str, hosts: list[str], command: str) -> int:
    """Use asyncssh, with its check of host keys."""
    import asyncio

    import asyncssh as library  # type: ignore[import-not-found,unused-ignore]

    how = settings(ssh_config)
    kex: Any = how.get("KexAlgorithms", "").split(",") if "KexAlgorithms" in how else ()

    async def one(host: str, gate: asyncio.Semaphore) -> bool:
        async with gate:
            try:
                async with library.connect(
                    host,
                    port=int(how["Port"]),
                    username=how["User"],
                    client_keys=[how["IdentityFile"]],
                    known_hosts=how["UserKnownHostsFile"],
                    config=None,
                    kex_algs=kex,
                ) as connection:
                    return bool((await connection.run(command)).exit_status == 0)
            except (OSError, library.Error):
                return False

    async def all_of_them() -> int:
        gate = asyncio.Semaphore(AT_ONCE)
        return sum(not good for good in await asyncio.gather(*(one(host, gate) for host in hosts)))

    return asyncio.run(all_of_them())


def main(argv: list[str]) -> int:
    """Run the client that is named; return how many hosts failed, at most 100."""
    client, ssh_config, hostfile, command = argv
    hosts = list(dict.fromkeys(Path(hostfile).read_text().split()))
    clients = {"torchfab": torchfab, "parallel-ssh": parallel_ssh, "asyncssh": asyncssh}
    failed = clients[client](ssh_config, hosts, command)
    print(f"{failed} failed")
    return min(failed, 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
