"""Kubernetes objects to YAML for `kubectl apply -f -`, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torchfab.core.errors import UsageError

# Text that every YAML reader parses as a string without quotes; they disagree on others, such as `1e3`, `y` and `0o17`.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}


def escape(text: str) -> str:
    """Escape a text so that the kubelet passes it to the container unchanged.

    In arguments and values the kubelet expands `$(NAME)` and turns `$$` into `$`.

    Parameters
    ----------
    text : str
        An argument or a value.

    Returns
    -------
    str
    """
    return re.sub(r"\$(?=[$(])", "$$", text)


def check_text(name: str, text: str) -> str:
    """Check that a manifest can hold a text: it must be Unicode.

    Parameters
    ----------
    name : str
        Description of the text, for the error.
    text : str
        The text.

    Returns
    -------
    str
        The same text.

    Raises
    ------
    UsageError
        The text contains bytes that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} is not UTF-8, which a Kubernetes manifest requires: {text!r}") from None
    return text


def to_yaml(objects: Sequence[Mapping[str, Any]], comments: Iterable[str] = ()) -> str:
    """Write objects as YAML documents.

    Parameters
    ----------
    objects : sequence of Mapping
        The objects.
    comments : iterable of str
        Comments above the documents. Default: none.

    Returns
    -------
    str
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)  # indent lists, as kubectl does

    Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(_TEXT, text, style=_style(text)))
    head = "".join(f"# {line}".rstrip() + "\n" for comment in comments for line in comment.splitlines() or [""])
    body = yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=float("inf"), explicit_start=True)
    return head + body


_TEXT = "tag:yaml.org,2002:str"


def _style(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return ""
    if "\n" in text and text.isascii() and not text.startswith((" ", "\n")):
        return "|"
    return '"' if "'" in text or "\n" in text else "'"


def from_yaml(text: str) -> list[dict[str, Any]]:
    """Parse the text that `to_yaml` returned.

    Parameters
    ----------
    text : str
        YAML documents.

    Returns
    -------
    list of dict
    """
    import yaml

    return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
