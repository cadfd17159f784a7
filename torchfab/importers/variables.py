"""Convert environment variables of a launch file to `--env`, or note why they are not converted."""

from __future__ import annotations

from torchfab.core.environment import is_secret
from torchfab.importers.draft import Draft, dynamic_parts, is_dynamic

_RANKS = "the launcher sets it for every rank"
_SET_BY_FAB = {
    **dict.fromkeys(("MASTER_ADDR", "MASTER_PORT"), "fab sets it: the address of node 0, a free port"),
    **dict.fromkeys(("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK"), _RANKS),
    "TORCHELASTIC_ERROR_FILE": "fab sets it, for fab why",
}


def carry(draft: Draft, number: int, name: str, value: str) -> None:
    """Add a variable to a draft, or note why it is not added. The value of a secret is never shown.

    Parameters
    ----------
    draft : Draft
        The draft.
    number : int
        The line of the file.
    name, value : str
        The variable; its value may have dynamic parts.
    """
    if name in _SET_BY_FAB:
        draft.skip(number, f"{name}=…", _SET_BY_FAB[name])
    elif name.startswith("PET_"):
        draft.skip(number, f"{name}=…", "torchrun would read it as a flag")
    elif is_secret(name):
        draft.skip(
            number, f"{name}=…", "a secret: export it in this terminal; torchfab.forward names what is forwarded"
        )
    elif {f"${name}", f"${{{name}}}"} & set(dynamic_parts(value)):
        draft.skip(number, f"{name}={value}", "it extends the node's own value: set the whole value with --env")
    elif is_dynamic(value):
        draft.skip(number, f"{name}={value}", "its value is not known without running the shell: --env sets it")
    else:
        draft.env.setdefault(name, value)


def shown(name: str, text: str) -> str:
    """Return the text of an assignment for a note, without its value if the name is that of a secret.

    Parameters
    ----------
    name : str
        Name of the variable.
    text : str
        The assignment, as it is in the file.

    Returns
    -------
    str
    """
    return f"{name}=…" if is_secret(name) else text
