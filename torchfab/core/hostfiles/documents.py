"""Hosts files that are JSON or YAML: which kind of document it is, and what of another kind is refused."""

from __future__ import annotations

import re
from collections.abc import Callable

from torchfab.core.hostfiles import ansible, ansible_data, clustershell, lists
from torchfab.core.hostfiles.dialect import Source, Translation
from torchfab.core.hostfiles.structured import load
from torchfab.core.lazy_dataclass import dataclass

_JSON = re.compile(r"\s*(\{|\[\s*[\[{\"\]])")
_YAML_TITLE = re.compile(r"(---.*|%YAML.*|[\w.@-]+:(\s.*)?)")
_YAML_BODY = re.compile(r"(\s+\S.*|-\s.*|[\w.@-]+:(\s.*)?|---.*|\.\.\.)")
_KEY = re.compile(r"^([A-Za-z_]\w*):(?=\s|$)", re.MULTILINE)
_FOR_IMPORT = "fab import FILE turns it into a command line; for its hosts, write one a line"


@dataclass(frozen=True)
class _Refused:
    """A kind of document that names no hosts for SSH: how it is recognised, what it is, and what to do instead."""

    keys: frozenset[str]
    title: str
    fix: str = _FOR_IMPORT


_REFUSED = (
    _Refused(frozenset({"cluster_name"}), "a cluster file of Ray"),
    _Refused(frozenset({"apiVersion", "kind"}), "a manifest of Kubernetes"),
    _Refused(frozenset({"compute_environment"}), "a configuration of accelerate"),
    _Refused(frozenset({"num_machines"}), "a configuration of accelerate"),
    _Refused(frozenset({"train_batch_size"}), "a configuration of DeepSpeed"),
    _Refused(frozenset({"train_micro_batch_size_per_gpu"}), "a configuration of DeepSpeed"),
    _Refused(
        frozenset({"plugin"}), "a dynamic inventory of ansible", "give what this prints: ansible-inventory --list"
    ),
    _Refused(
        frozenset({"cluster", "task"}), "TF_CONFIG of TensorFlow", "write its hosts one a line, without its ports"
    ),
    _Refused(frozenset({"services"}), "a file of docker compose", "write the hosts one a line"),
)


def is_document(source: Source) -> bool:
    """Say whether a text looks like JSON or YAML.

    Parameters
    ----------
    source : Source
        The text.

    Returns
    -------
    bool
        False for what can be lines of hosts.
    """
    if _JSON.match(source.text.removeprefix("\ufeff")):
        return True
    lines = [line for line in source.text.removeprefix("\ufeff").splitlines() if line.strip() and not _is_comment(line)]
    if len(lines) < 2:
        return False
    listed = re.match(r"\s*-\s+\S", lines[0]) and all(re.match(r"(\s*-\s+\S|---|\s+\S)", line) for line in lines)
    return bool(listed) or bool(_YAML_TITLE.fullmatch(lines[0]) and all(_YAML_BODY.fullmatch(line) for line in lines))


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


@dataclass(frozen=True)
class Document:
    """A JSON or YAML document of a known kind: what it is, and how to translate it."""

    title: str
    translate: Callable[[], Translation]


def recognise(source: Source) -> Document:
    """Return what kind of document a text is.

    Parameters
    ----------
    source : Source
        A text for which `is_document` is true.

    Returns
    -------
    Document

    Raises
    ------
    InventoryError
        The document is not valid, or of a kind that names no hosts for SSH.
    """
    document = load(source)
    if isinstance(document, dict):
        _refuse(source, set(document))
    if title := lists.title(document):
        return Document(title, lambda: lists.translate(source, document))
    inventory = ansible_data.read(source, document)
    if inventory is not None:
        return Document(ansible.TITLE, lambda: ansible.translate(source, inventory))
    if clustershell.is_document(document):
        return Document(clustershell.TITLE, lambda: clustershell.read_document(source, document))
    raise source.error(
        0, "a JSON or YAML document that lists no hosts", 'write one host a line, or ["node1", "node2"] in JSON'
    )


def refuse(source: Source) -> None:
    """Raise the error about a YAML document of a kind that names no hosts for SSH; return for any other text."""
    _refuse(source, set(_KEY.findall(source.text)))


def _refuse(source: Source, keys: set[str]) -> None:
    for each in _REFUSED:
        if each.keys <= keys:
            raise source.error(0, f"{each.title}, not a file of hosts", each.fix.replace("FILE", source.origin))


def read_ansible(source: Source) -> Translation:
    """Translate a YAML or JSON inventory of ansible, or raise InventoryError."""
    inventory = ansible_data.read(source, load(source))
    if inventory is None:
        raise source.error(0, f"not {ansible.TITLE}", "its groups have hosts:, children: and vars:")
    return ansible.translate(source, inventory)


def read_mlx(source: Source) -> Translation:
    """Translate a hosts file of MLX, or raise InventoryError."""
    document = load(source)
    if lists.title(document) != lists.MLX:
        raise source.error(0, f"not {lists.MLX}", 'it has a list of {"ssh": "me@node1", "ips": ["10.0.0.2"]}')
    return lists.translate(source, document)
