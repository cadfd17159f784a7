"""`fab attach` on a tmux job: the command that opens a terminal on its session."""

from __future__ import annotations

import os
import shlex

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.console import write_err
from torchfab.core.specs import Node, session_name
from torchfab.records import Record

# Options that a configuration file may set and that would end a job, or keep the server after its last session.
_KEEPING = (
    *(";", "set-option", "-s", "exit-unattached", "off", ";", "set-option", "-s", "exit-empty", "on"),
    *(";", "set-option", "-g", "destroy-unattached", "off", ";", "set-option", "-gw", "remain-on-exit", "off", ";"),
)


def attach_argv(record: Record, node: Node, window: str) -> tuple[str, ...]:
    """Return the command that attaches this terminal to the job's tmux session.

    Parameters
    ----------
    record : Record
        The job.
    node : Node
        The node whose session to attach to.
    window : str
        Name of the tmux window; empty: the current one.

    Returns
    -------
    tuple of str
        The command.
    """
    conf = record.settings.tmux_conf
    detach = f"the detach key of {conf}" if conf else "Ctrl-B, then D"
    write_err(f"to leave it running: {detach}; Ctrl-C stops the process")
    target = f"={session_name(record.name, node.rank)}:" + (f"={window}" if window else "")
    # TMUX is set if this terminal runs inside tmux, which then refuses to attach.
    from torchfab.remote.tmux import SERVER

    head, attach = ("env", "-u", "TMUX", *SERVER), ("attach-session", "-t", target)
    if node.is_local:
        source = ("source-file", "-q", os.path.expanduser(conf), *_KEEPING) if conf else ()
        return (*head, *source, *attach)
    source_text = f"source-file -q {_shell_path(conf)} {shlex.join(_KEEPING)} " if conf else ""
    command = f"exec {shlex.join(head)} {source_text}{shlex.join(attach)}"
    return (*ssh_argv(node, record.settings), "-t", "--", node.host, command)


def _shell_path(path: str) -> str:
    """Quote a path for the node's shell, which expands `~` to the user's home folder."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def ssh_argv(node: Node, settings: ConnectionSettings) -> tuple[str, ...]:
    """Return the `ssh` command with the options that reach a node, without the host.

    Parameters
    ----------
    node : Node
        The node.
    settings : ConnectionSettings
        Options from `-S`, `-i` and fabric.yaml.

    Returns
    -------
    tuple of str
        `ssh` and its options.
    """
    port = ("-p", str(node.port)) if node.port else ()
    user = ("-l", node.user) if node.user else ()
    return ("ssh", *settings.ssh_options, *port, *user)
