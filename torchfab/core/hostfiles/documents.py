"""Hosts files in JSON or YAML: detect the kind of document, and reject kinds that name no hosts for SSH."""

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
_FOR_IMPORT = "fab import FILE converts it to a command line; for its hosts, write one per line"


@dataclass(frozen=True)
class _Refused:
    """A kind of document that names no hosts for SSH: its keys, its description, and the fix."""

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
    _Refused(frozenset({"plugin"}), "a dynamic inventory of ansible", "pass the output of: ansible-inventory --list"),
    _Refused(
        frozenset({"cluster", "task"}), "TF_CONFIG of TensorFlow", "write its hosts one per line, without the ports"
    ),
    _Refused(frozenset({"services"}), "a file of docker compose", "write the hosts one per line"),
)


def is_document(source: Source) -> bool:
    """Return whether a text looks like JSON or YAML.

    Parameters
    ----------
    source : Source
        The text.

    Returns
    -------
    bool
        False for a text that can be lines of hosts.
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
    """A JSON or YAML document of a known kind, with its description and its translation."""

    title: str
    translate: Callable[[], Translation]


def recognise(source: Source) -> Document:
    """Return the kind of document that a text is.

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
        The document is invalid, or of a kind that names no hosts for SSH.
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
    if error := lists.numbers_error(source, document):
        raise error
    raise source.error(
        0, "a JSON or YAML document that lists no hosts", 'write one host per line, or ["node1", "node2"] in JSON'
    )


def refuse(source: Source) -> None:
    """Raise an error for a YAML document of a kind that names no hosts for SSH.

    Parameters
    ----------
    source : Source
        The text of the file.

    Raises
    ------
    InventoryError
        The text is such a document; the message names its kind.
    """
    _refuse(source, set(_KEY.findall(source.text)))


def _refuse(source: Source, keys: set[str]) -> None:
    for each in _REFUSED:
        if each.keys <= keys:
            raise source.error(0, f"{each.title}, not a hosts file", each.fix.replace("FILE", source.origin))


def read_ansible(source: Source) -> Translation:
    """Translate a YAML or JSON inventory of ansible.

    Parameters
    ----------
    source : Source
        The text of the file.

    Returns
    -------
    Translation

    Raises
    ------
    InventoryError
        The text is not an inventory, or the inventory is invalid.
    """
    inventory = ansible_data.read(source, load(source))
    if inventory is None:
        raise source.error(0, f"not {ansible.TITLE}", "its groups have hosts:, children: and vars:")
    return ansible.translate(source, inventory)


def read_mlx(source: Source) -> Translation:
    """Translate a hosts file of MLX.

    Parameters
    ----------
    source : Source
        The text of the file.

    Returns
    -------
    Translation

    Raises
    ------
    InventoryError
        The text is not a hosts file of MLX, or a host is invalid.
    """
    document = load(source)
    if lists.title(document) != lists.MLX:
        raise source.error(0, f"not {lists.MLX}", 'it has a list of {"ssh": "me@node1", "ips": ["10.0.0.2"]}')
    return lists.translate(source, document)
