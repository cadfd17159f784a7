"""The record of the end of a process of the job: exit.json."""

from __future__ import annotations

import time

from torchfab.remote import light_stdlib, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from torchfab.remote.job.process_watch import ProcessWatch


def compose(watch: ProcessWatch, is_cleaning: bool = False, cleared: dict[str, int] | None = None) -> dict[str, Any]:
    """Return the record of the end of a process.

    Parameters
    ----------
    watch : ProcessWatch
        The process.
    is_cleaning : bool
        Whether processes of it are left. Default False.
    cleared : dict of str to int, optional
        The files removed outside the job's folder. Default: none.

    Returns
    -------
    dict
        The content of `exit.json`.
    """
    code = watch.child.returncode if watch.child is not None and not watch.error else None
    oom_kills = (procfs.oom_kills() or 0) - watch.oom_kills
    record: dict[str, Any] = {
        "code": code,
        "signal": light_stdlib.signal_name(-code) if code is not None and code < 0 else None,
        "time": watch.ended[0] if watch.ended else time.time(),
        "asked": watch.request.signal,
        "warned": watch.warned,
        "killed": list(watch.clean_up.killed.values()),
    }
    optional = {
        "error": watch.error,
        "cleaning": is_cleaning,
        "oom_kills": oom_kills,
        "rank_ends": watch.request.rank_ends(watch.clean_up.killed) if watch.request.signal else None,
        "clock": watch.ended[1] if watch.ended else None,
        "cleared": cleared if any((cleared or {}).values()) else None,
        "foreign": watch.clean_up.foreign,
        "peers": list(watch.peer_end.ended.items()),
    }
    record.update((name, value) for name, value in optional.items() if value)
    return record if watch.error or is_cleaning else {**record, "left": watch.clean_up.left}
