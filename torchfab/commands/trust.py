"""`fab trust`: show the host keys of all hosts at once, ask once, and remember them as ssh does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.cli.flags import TrustFlags
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.console import progress, write_err, write_out
from torchfab.core.errors import HostError, HostsFailedError, TorchfabError, UsageError
from torchfab.core.specs import Node
from torchfab.launch.context import CommandContext
from torchfab.launch.hosts import read_nodes
from torchfab.transport.fanout import fan_out
from torchfab.transport.ssh import connect, connections, host_keys, known_hosts, login
from torchfab.transport.ssh.host_keys import Rules


@dataclass(frozen=True)
class Sight:
    """The key that a host shows, and what is known of it.

    Parameters
    ----------
    label : str
        The host, for people.
    rules : Rules
        What ssh's configuration says of it.
    key : paramiko.PKey
        The key.
    verdict : Verdict
        Whether it is known.
    """

    label: str
    rules: Rules
    key: Any
    verdict: known_hosts.Verdict

    @property
    def standing(self) -> str:
        """`known`, `new`, `CHANGED` or `REVOKED`."""
        standing = self.verdict.standing
        return standing if standing in ("known", "new") else standing.upper()


def run(flags: TrustFlags, ctx: CommandContext) -> int:
    """Show the host keys of all hosts, ask once, and write the new ones into known_hosts; return 0."""
    trust(read_nodes(flags.hostfile, ctx), ctx.settings, flags.yes, flags.json)
    return 0


def trust(nodes: Sequence[Node], settings: ConnectionSettings, yes: bool, as_json: bool) -> None:
    """Look at the keys of all hosts and of those they are reached through, ask, and remember what is new.

    Nobody is gone through whose key is not known: where jump hosts are new, those are asked for first, by themselves.

    Parameters
    ----------
    nodes : sequence of Node
        The hosts; `localhost` has no key.
    yes : bool
        Do not ask.
    as_json : bool
        Print JSON, and ask nothing: without `yes`, nothing is written.

    Raises
    ------
    HostsFailedError
        At the end some host is not known, or did not answer.
    UsageError
        There is something to ask, and no terminal.
    """
    ways = ways_to(nodes, settings)
    seen: dict[str, Sight] = {}
    problems: dict[str, TorchfabError] = {}
    for depth in range(max(map(len, ways.values()), default=0)):
        wave = {label: hops[-1] for label, hops in ways.items() if len(hops) == depth + 1}
        for label, result in look(wave, settings):
            if isinstance(result, Sight):
                seen[label] = result
            else:
                problems[label] = result
        found = [seen[label] for label in wave if label in seen]
        problems.update(introduce(found, yes, as_json))
    if as_json:
        write_out(json.dumps([as_value(label, seen.get(label), problems.get(label)) for label in ways], indent=2))
    if problems:
        ordered = {label: problems[label] for label in ways if label in problems}
        raise HostsFailedError(f"{len(ordered)} of {len(ways)} hosts are not trusted", ordered)


def ways_to(nodes: Sequence[Node], settings: ConnectionSettings) -> dict[str, list[Any]]:
    """Return, by label, the connections through which each host is reached, itself last; jump hosts are hosts too."""
    remote = [node for node in nodes if not node.is_local]
    made = connections(remote, settings)
    ways: dict[str, list[Any]] = {}
    for node in remote:
        connection = made[node.rank]
        hops = [connection] if isinstance(connection, HostError) else connect.hops(connection)
        for count, hop in enumerate(hops[:-1], 1):
            ways.setdefault(connect.label(hop), hops[:count])
        ways[node.label] = hops
    return ways


def look(wave: Mapping[str, Any], settings: ConnectionSettings) -> Iterable[tuple[str, Sight | TorchfabError]]:
    """Yield what each host shows, or why it shows nothing, as they answer."""

    def act(label: str) -> Sight:
        rules, key = login.host_key(wave[label])
        return Sight(label, rules, key, host_keys.judge(rules, key))

    for done, (label, result) in enumerate(fan_out(wave, act, settings.fanout), 1):
        progress("asking for host keys", done, len(wave))
        unknown = isinstance(result, Exception) and not isinstance(result, TorchfabError)
        yield label, HostError(f"{type(result).__name__}: {result}") if unknown else result  # type: ignore[misc]


def introduce(found: Sequence[Sight], yes: bool, as_json: bool) -> dict[str, TorchfabError]:
    """Show keys, and remember the new ones if that is wished; return why the others are not trusted, by label."""
    if not as_json:
        for line in table(found):
            write_out(line)
    unknown = [sight for sight in found if sight.verdict.standing == "new"]
    news = [sight for sight in unknown if sight.rules.user_files]
    refused = [sight for sight in unknown if not sight.rules.user_files]  # what is written for them is never read
    if news and not yes and (as_json or not _wished(news)):
        refused += news
    else:
        remember(news)
    refused = [*refused, *(sight for sight in found if sight.verdict.standing in ("changed", "revoked"))]
    return {sight.label: host_keys.refusal(sight.rules, sight.key, sight.verdict) for sight in refused}


def table(found: Sequence[Sight]) -> list[str]:
    """Return a line per host: its name, whether its key is known, and the key as `ssh-keygen -l` prints it."""
    width = max((len(sight.label) for sight in found), default=0)
    return [
        f"{sight.label:{width}}  {sight.standing:7}  {host_keys.long_fingerprint(sight.key, sight.rules.name)}"
        for sight in found
    ]


def _wished(news: Sequence[Sight]) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(
            f"{len(news)} host keys are new, and there is no terminal to ask whether they are right",
            "compare them with what the hosts' owner says (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there), "
            "then: fab trust --yes",
        )
    files = ", ".join(sorted({sight.rules.first_file for sight in news}))
    what = "this key" if len(news) == 1 else f"these {len(news)} new keys"
    question = f"write {what} into {files}? Only if that is what the hosts' owner says [yes/no] "
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def remember(news: Sequence[Sight]) -> None:
    """Write new keys into the first known_hosts file of each host.

    Raises
    ------
    TorchfabError
        A file cannot be written.
    """
    lines: dict[str, dict[str, str]] = {}
    for sight in news:
        lines.setdefault(sight.rules.first_file, {})[sight.rules.name] = sight.rules.line_for(sight.key)
    for path, by_name in lines.items():
        try:
            known_hosts.append(path, list(by_name.values()))
        except OSError as error:
            raise TorchfabError(f"cannot write {path}: {error.strerror}", "free space or rights there") from error
        write_err(f"{len(by_name)} {'key' if len(by_name) == 1 else 'keys'} written into {path}")


def as_value(label: str, sight: Sight | None, problem: TorchfabError | None) -> dict[str, Any]:
    """Return what is known of a host as JSON has it."""
    standing = sight.verdict.standing if sight else "silent"
    key = host_keys.fingerprint(sight.key) if sight else ""
    problem_text = problem.message if problem else ""
    return {"host": label, "standing": standing, "key": key, "trusted": problem is None, "problem": problem_text}
