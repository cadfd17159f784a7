"""Run nvidia-smi. Its output is parsed by `gpu_usage` (the load) and `gpu_health` (everything else)."""

from __future__ import annotations

CSV_FORMAT = "--format=csv,noheader,nounits"


class NvidiaSmiError(Exception):
    """nvidia-smi could not be run; the message has the reason."""


class NotInstalledError(NvidiaSmiError):
    """There is no nvidia-smi here."""


def run(*args: str, timeout_s: float) -> tuple[int, str]:
    """Run nvidia-smi.

    Parameters
    ----------
    *args : str
        Its arguments.
    timeout_s : float
        Seconds after which it is killed: with a faulty GPU it may hang.

    Returns
    -------
    int
        Its exit code.
    str
        Its stdout and stderr.

    Raises
    ------
    NotInstalledError
        There is no nvidia-smi.
    NvidiaSmiError
        It gave no answer in time, or could not be started.
    """
    import subprocess  # imported here: in a launch, nvidia-smi is usually run by `QuickProbe`

    try:
        done = subprocess.run(
            ["nvidia-smi", *args],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except FileNotFoundError:
        raise NotInstalledError("nvidia-smi is not there") from None
    except subprocess.TimeoutExpired:
        raise NvidiaSmiError(f"nvidia-smi did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise NvidiaSmiError(f"nvidia-smi does not run: {error.strerror}") from None
    return done.returncode, done.stdout


def reports_no_gpu(text: str) -> bool:
    """Return whether a message of nvidia-smi says that the machine has no GPU, which is not a problem.

    Parameters
    ----------
    text : str
        The message.

    Returns
    -------
    bool
    """
    return text.startswith("No devices were found")
