"""The variables of a node's login environment that the processes of a job do not inherit."""

from __future__ import annotations

# They describe the session in which torchfab's program runs, and were not set by the user.
_OF_THE_SESSION = (
    "TMUX",
    "TMUX_PANE",
    "TERM",
    "SSH_CLIENT",
    "SSH_CONNECTION",
    "SSH_TTY",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "_",
)
# torchrun reads PET_<FLAG> for each of its flags: PET_STANDALONE=1 of a login shell would replace our rendezvous.
_TORCHRUN_FLAGS = "PET_"
# Launchers set these for each rank. RANK of a login shell would make a launcher look like a rank, and where a launcher
# leaves a variable out, the script would read the login shell's.
_OF_RANKS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "NODE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_MAX_RESTARTS"),
    *("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_ERROR_FILE"),
)


def is_of_launchers(name: str) -> bool:
    """Return whether a variable is one that launchers set for their ranks, or that torchrun reads as a flag.

    Parameters
    ----------
    name : str
        Its name.

    Returns
    -------
    bool
    """
    return name in _OF_RANKS or name.startswith(_TORCHRUN_FLAGS)


def is_inherited(name: str) -> bool:
    """Return whether the processes of a job inherit a variable of the node's login environment.

    Parameters
    ----------
    name : str
        Its name.

    Returns
    -------
    bool
    """
    return name not in _OF_THE_SESSION and not is_of_launchers(name)
