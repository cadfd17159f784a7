#!/usr/bin/env python3
"""Client libraries as programs: each runs one command on every host, 64 at a time, and fails if any host did.

clients.py torchfab|parallel-ssh|asyncssh SSH_CONFIG HOSTFILE COMMAND
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

AT_ONCE = 64


def settings(ssh_config: str) -> dict[str, str]:
    """Return the values of a benchmark's ssh config by keyword."""
    words = [line.split(None, 1) for line in Path(ssh_config).read_text().splitlines()]
    return {each[0]: each[1] for each in words if len(each) == 2}


def torchfab(ssh_config: str, hosts: list[str], command: str) -> int:
    """Use torchfab's own connections, which verify host keys."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from torchfab.cli.executor import reduce_gc_frequency
    from torchfab.config.connection_settings import ConnectionSettings
    from torchfab.core.specs import Node
    from torchfab.transport.ssh import NodeConnection, NodeGroup, connect

    reduce_gc_frequency()  # as every fab command does
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
    """Use parallel-ssh's default client (libssh2), which verifies no host keys."""
    from pssh.clients import ParallelSSHClient  # type: ignore[import-not-found,unused-ignore]

    options = settings(ssh_config)
    client = ParallelSSHClient(
        hosts,
        user=options["User"],
        port=int(options["Port"]),
        pkey=options["IdentityFile"],
        pool_size=AT_ONCE,
        num_retries=1,
    )
    output = client.run_command(command, stop_on_errors=False)
    client.join(output)
    return sum(each.exception is not None or each.exit_code != 0 for each in output)


def asyncssh(ssh_config: str, hosts: list[str], command: str) -> int:
    """Use asyncssh, which verifies host keys."""
    import asyncio

    import asyncssh as library  # type: ignore[import-not-found,unused-ignore]

    options = settings(ssh_config)
    kex: Any = options.get("KexAlgorithms", "").split(",") if "KexAlgorithms" in options else ()

    async def run_one(host: str, semaphore: asyncio.Semaphore) -> bool:
        async with semaphore:
            try:
                async with library.connect(
                    host,
                    port=int(options["Port"]),
                    username=options["User"],
                    client_keys=[options["IdentityFile"]],
                    known_hosts=options["UserKnownHostsFile"],
                    config=None,
                    kex_algs=kex,
                ) as connection:
                    return bool((await connection.run(command)).exit_status == 0)
            except (OSError, library.Error):
                return False

    async def run_all() -> int:
        semaphore = asyncio.Semaphore(AT_ONCE)
        return sum(not good for good in await asyncio.gather(*(run_one(host, semaphore) for host in hosts)))

    return asyncio.run(run_all())


def main(argv: list[str]) -> int:
    """Run the named client; return the number of failed hosts, at most 100."""
    client, ssh_config, hostfile, command = argv
    hosts = list(dict.fromkeys(Path(hostfile).read_text().split()))
    clients = {"torchfab": torchfab, "parallel-ssh": parallel_ssh, "asyncssh": asyncssh}
    failed = clients[client](ssh_config, hosts, command)
    print(f"{failed} failed")
    return min(failed, 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
