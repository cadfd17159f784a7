"""`fab trust`: show the host keys of all hosts at once, ask once, and write them into known_hosts as ssh does."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torchfab import documents
from torchfab.cli.flags import TrustFlags
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.console import progress, write_err, write_out
from torchfab.core.errors import HostError, HostsFailedError, TorchfabError, UsageError
from torchfab.core.format import align_columns
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.launching.context import CommandContext
from torchfab.launching.hosts import read_nodes
from torchfab.transport.fanout import fan_out
from torchfab.transport.ssh import connect, host_keys, known_hosts, login
from torchfab.transport.ssh.host_keys import Rules

# Connections without a login count in sshd's PerSourcePenalties, and MaxStartups drops some of many simultaneous ones;
# both matter for a jump host, or for a host with several names.
_AT_ONCE = 16


@dataclass(frozen=True)
class ShownKey:
    """The key that a host presents, and whether known_hosts has it.

    Parameters
    ----------
    label : str
        Display name of the host.
    rules : Rules
        ssh's configuration of host key checks for the host.
    key : paramiko.PKey
        The key.
    verdict : Verdict
        Whether it is known, new, changed or revoked.
    """

    label: str
    rules: Rules
    key: Any
    verdict: known_hosts.Verdict

    @property
    def status(self) -> str:
        """`known`, `new`, `CHANGED` or `REVOKED`."""
        standing = self.verdict.status
        return standing if standing in ("known", "new") else standing.upper()


def run(flags: TrustFlags, ctx: CommandContext) -> int:
    """Show the host keys of all hosts, ask once, and write the new ones into known_hosts.

    Parameters
    ----------
    flags : TrustFlags
        The flags of `fab trust`.
    ctx : CommandContext
        Working directory and settings.

    Returns
    -------
    int
        Exit code 0.
    """
    trust(read_nodes(flags.hostfile, ctx, flags.hostfile_format), ctx.settings, flags.yes, flags.json)
    return 0


def trust(nodes: Sequence[Node], settings: ConnectionSettings, yes: bool, as_json: bool) -> None:
    """Fetch the keys of all hosts and of their jump hosts, ask, and save the new ones.

    A connection never passes a jump host whose key is not known: new jump hosts are confirmed first, separately.

    Parameters
    ----------
    nodes : sequence of Node
        The hosts; `localhost` has no key.
    settings : ConnectionSettings
        How the hosts are reached.
    yes : bool
        Do not ask.
    as_json : bool
        Print JSON and do not ask: without `yes`, nothing is written.

    Raises
    ------
    HostsFailedError
        A host is not trusted at the end, or did not answer.
    UsageError
        A question is necessary, and there is no terminal.
    """
    chains = hop_chains(nodes, settings)
    if not chains and not as_json:
        write_out("every host is this machine, which is reached without SSH: no host key is needed")
    keys: dict[str, ShownKey] = {}
    problems: dict[str, TorchfabError] = {}
    for depth in range(max(map(len, chains.values()), default=0)):
        wave = {label: hops[-1] for label, hops in chains.items() if len(hops) == depth + 1}
        for label, result in fetch_keys(wave, settings):
            if isinstance(result, ShownKey):
                keys[label] = result
            else:
                problems[label] = result
        found = [keys[label] for label in wave if label in keys]
        problems.update(confirm(found, yes, as_json))
    if as_json:
        values = [as_json_value(label, keys.get(label), problems.get(label)) for label in chains]
        write_out(documents.encode(values))
    if problems:
        ordered = {label: problems[label] for label in chains if label in problems}
        raise HostsFailedError(f"{len(ordered)} of {len(chains)} hosts are not trusted", ordered)


def hop_chains(nodes: Sequence[Node], settings: ConnectionSettings) -> dict[str, list[Any]]:
    """Return the chain of connections to each host and to each jump host.

    Parameters
    ----------
    nodes : sequence of Node
        The hosts; `localhost` is skipped.
    settings : ConnectionSettings
        How the hosts are reached.

    Returns
    -------
    dict of str to list
        Connections by label: jump hosts first, the host last.
    """
    remote = [node for node in nodes if not node.is_local]
    chains: dict[str, list[Any]] = {}
    for node, connection in zip(remote, connect.connections(remote, settings), strict=True):
        hops = connect.hops(connection)
        for count, hop in enumerate(hops[:-1], 1):
            chains.setdefault(connect.hop_label(hop), hops[:count])
        chains[node.label] = hops
    return chains


def fetch_keys(wave: Mapping[str, Any], settings: ConnectionSettings) -> Iterable[tuple[str, ShownKey | TorchfabError]]:
    """Fetch the keys of hosts in parallel.

    Parameters
    ----------
    wave : Mapping of str to object
        Connections by label.
    settings : ConnectionSettings
        Timeouts and fan-out.

    Returns
    -------
    iterable of tuple
        Label, and key or error, in the order of the answers.
    """

    def fetch(label: str) -> ShownKey:
        rules, key = login.fetch_host_key(wave[label])
        return ShownKey(label, rules, key, host_keys.classify(rules, key))

    for done, (label, result) in enumerate(fan_out(wave, fetch, min(settings.fanout, _AT_ONCE)), 1):
        progress("fetching host keys", done, len(wave))
        unexpected = isinstance(result, Exception) and not isinstance(result, TorchfabError)
        yield label, HostError(f"{type(result).__name__}: {result}") if unexpected else result  # type: ignore[misc]


def confirm(found: Sequence[ShownKey], yes: bool, as_json: bool) -> dict[str, TorchfabError]:
    """Show keys, and save the new ones if the user confirms them.

    Parameters
    ----------
    found : sequence of ShownKey
        The keys of all hosts of one depth.
    yes : bool
        Do not ask.
    as_json : bool
        Print no table and do not ask.

    Returns
    -------
    dict of str to TorchfabError
        Why the other hosts are not trusted, by label.
    """
    if found and not as_json:
        write_out(table(found))
    unknown = [shown for shown in found if shown.verdict.status == "new"]
    new_keys = [shown for shown in unknown if shown.rules.user_files]
    refused = [shown for shown in unknown if not shown.rules.user_files]  # ssh reads no known_hosts file for them
    if new_keys and not yes and (as_json or not _ask_user(new_keys)):
        refused += new_keys
    else:
        save(new_keys)
    refused = [*refused, *(shown for shown in found if shown.verdict.status in ("changed", "revoked"))]
    return {shown.label: host_keys.rejection(shown.rules, shown.key, shown.verdict) for shown in refused}


def table(found: Sequence[ShownKey]) -> str:
    """Render one line per host: its name, the key's status, and the key as `ssh-keygen -l` prints it.

    Parameters
    ----------
    found : sequence of ShownKey
        At least one key.

    Returns
    -------
    str
        The lines.
    """
    return align_columns(
        [[shown.label, shown.status, host_keys.long_fingerprint(shown.key, shown.rules.name)] for shown in found]
    )


def _ask_user(new_keys: Sequence[ShownKey]) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(
            f"{len(new_keys)} host keys are new, and there is no terminal for a confirmation",
            "compare them with those of the hosts' owner (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there), "
            "then: fab trust --yes",
        )
    files = ", ".join(sorted({shown.rules.first_file for shown in new_keys}))
    subject = "this key" if len(new_keys) == 1 else f"these {len(new_keys)} new keys"
    question = f"write {subject} into {files}? Answer yes only if the hosts' owner confirms them [yes/no]  "
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def save(new_keys: Sequence[ShownKey]) -> None:
    """Write new keys into the first known_hosts file of each host.

    Parameters
    ----------
    new_keys : sequence of ShownKey
        The keys.

    Raises
    ------
    TorchfabError
        A file cannot be written.
    """
    lines: dict[str, dict[str, str]] = {}
    for shown in new_keys:
        lines.setdefault(shown.rules.first_file, {})[shown.rules.name] = shown.rules.line_for(shown.key)
    for path, by_name in lines.items():
        try:
            known_hosts.append(path, list(by_name.values()))
        except OSError as error:
            raise TorchfabError(
                f"cannot write {path}: {error.strerror}", "free disk space, or check permissions"
            ) from error
        write_err(f"{len(by_name)} {'key' if len(by_name) == 1 else 'keys'} written into {path}")


def as_json_value(label: str, shown: ShownKey | None, problem: TorchfabError | None) -> dict[str, Any]:
    """Return the JSON value of a host.

    Parameters
    ----------
    label : str
        Display name of the host.
    shown : ShownKey, optional
        Its key; None if it presented none.
    problem : TorchfabError, optional
        Why it is not trusted; None if it is.

    Returns
    -------
    dict
        `host`, `standing`, `key`, `trusted` and `problem`.
    """
    standing = shown.verdict.status if shown else "silent"
    key = host_keys.fingerprint(shown.key) if shown else ""
    problem_text = problem.message if problem else None
    return {"host": label, "standing": standing, "key": key, "trusted": problem is None, "problem": problem_text}
