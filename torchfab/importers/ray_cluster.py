"""Convert a cluster file of Ray with existing machines (`provider: {type: local}`) to a command line."""

from __future__ import annotations

from typing import Any

from torchfab.importers.document_values import Document
from torchfab.importers.draft import Draft

_RAY = "fab starts ranks of torch.distributed, not Ray"
_BEFORE = "fab runs no commands of this file: use --setup or --before, or run them before the launch"


def matches(document: Any) -> bool:
    """Return whether a document is a cluster file of Ray.

    Parameters
    ----------
    document : any
        The document, as `structured.load` returns it.

    Returns
    -------
    bool
    """
    return isinstance(document, dict) and "cluster_name" in document and "provider" in document


def read(document: dict[str, Any]) -> Draft:
    """Convert a cluster file to a command line.

    Parameters
    ----------
    document : dict
        The document, as `structured.load` returns it; its values are removed.

    Returns
    -------
    Draft
        Without a script, because the file names none; without hosts if a cloud creates the machines.
    """
    draft = Draft("a cluster file of Ray")
    root = Document(document, draft)
    root.take("cluster_name")
    hosts = _hosts(root)
    key = root.text("auth", "ssh_private_key")
    if key:
        draft.core += ["-i", key]
    if hosts:
        draft.core += ["-H", ",".join(hosts)]
    for name in ("setup_commands", "initialization_commands", "head_setup_commands", "worker_setup_commands"):
        root.drop(_BEFORE, name)
    root.drop("fab sync copies the working directory to all nodes", "file_mounts")
    for name in ("head_start_ray_commands", "worker_start_ray_commands", "available_node_types", "head_node_type"):
        root.drop(_RAY, name)
    for name in ("min_workers", "max_workers", "upscaling_speed", "idle_timeout_minutes"):
        root.drop("the job uses the hosts that the file names", name)
    root.drop("ranks run on the nodes themselves, not in a container", "docker")
    root.rest()
    return draft


def _hosts(root: Document) -> list[str]:
    kind = root.text("provider", "type")
    head, workers = root.text("provider", "head_ip"), root.texts("provider", "worker_ips")
    user = root.text("auth", "ssh_user")
    hosts = [each for each in (head, *workers) if each]
    if not hosts:
        root.draft.skip(
            0,
            f"provider.type: {kind or 'none'}",
            "a cloud creates the machines: give hosts with -H, or in the hosts file",
        )
    return [f"{user}@{host}" if user else host for host in hosts]
