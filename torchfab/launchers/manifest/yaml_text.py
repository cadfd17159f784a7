"""Kubernetes objects as text that `kubectl apply -f -` takes, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torchfab.core.errors import UsageError

# What every YAML reader takes for text without quotes: they disagree on much, as on `1e3`, `y` and `0o17`.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}


def escape(text: str) -> str:
    """Return `text` such that the kubelet hands it to the container unchanged.

    In arguments and values it expands `$(NAME)`, and makes one `$` of two.
    """
    return re.sub(r"\$(?=[$(])", "$$", text)


def check_text(what: str, text: str) -> str:
    """Return `text`, or raise UsageError if a manifest cannot hold it: it is Unicode, not bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not UTF-8, and a Kubernetes manifest holds nothing else: {text!r}") from None
    return text


def to_yaml(objects: Sequence[Mapping[str, Any]], comments: Iterable[str] = ()) -> str:
    """Return objects as YAML documents below comments."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)  # lists stand in, as kubectl and people write them

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
    """Return the objects that `to_yaml` made text of."""
    import yaml

    return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
