"""`fab profile`: profile all ranks of a running job at one instant, into one trace, with a summary."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from torchfab import documents, runtimes
from torchfab.core import inventory
from torchfab.core.console import write_out
from torchfab.core.errors import HostError, HostsFailedError, TorchfabError, UsageError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.monitoring.job_status import ask_status
from torchfab.profiling import merge, report
from torchfab.profiling.model import JobProfile, RankTimes
from torchfab.records import Record

MAX_SECONDS = 60.0
_NO_PROBE = "no probe"
_NO_ANSWER = "no answer"


@dataclass(frozen=True)
class ProfileOptions:
    """What to profile, and where the trace goes.

    Parameters
    ----------
    seconds : float
        How long, up to 60. Default 3.
    ranks : str
        `0,2-5`. Empty: all. Default empty.
    output : str
        The file. Empty: `profile-JOB-TIME.json.gz` in the current folder. Default empty.
    """

    seconds: float = 3.0
    ranks: str = ""
    output: str = ""


def show_profile(record: Record, options: ProfileOptions, as_json: bool, browse: bool) -> int:
    """Profile a job, write the merged trace and print its summary.

    Parameters
    ----------
    record : Record
        The job.
    options : ProfileOptions
        What to profile.
    as_json : bool
        Print JSON.
    browse : bool
        Serve the trace for ui.perfetto.dev until Ctrl-C.

    Returns
    -------
    int
        Exit code: 0 if every selected rank has a profile, else 1.

    Raises
    ------
    UsageError
        A flag is wrong, or the job does not run.
    TorchfabError
        No rank could be profiled, or the file cannot be written.
    """
    ranks = _check(record, options)
    path = _output(record, options)
    with tempfile.TemporaryDirectory(prefix="torchfab-profile-") as folder:
        found = runtimes.load(record.runtime).profile(record, ranks, options.seconds, Path(folder))
        if not found.ranks:
            raise _refusal(record, found)
        times = _merge(found, path)
    shown = (record.name, str(path), options.seconds, found, times)
    write_out(documents.encode(report.as_json(*shown)) if as_json else report.render(*shown))
    if browse:
        from torchfab.profiling import browser

        browser.serve(path)
    return 1 if found.missing or found.failed else 0


def _merge(found: JobProfile, path: Path) -> list[RankTimes]:
    try:
        return merge.write(found.ranks, path)
    except ValueError as error:
        raise TorchfabError(str(error), "profile again; with --rank, without that rank") from None
    except OSError as error:
        raise TorchfabError(f"cannot write {path}: {error.strerror}", "choose another file: --output PATH") from None


def _check(record: Record, options: ProfileOptions) -> list[int] | None:
    """Return the selected ranks; refuse what cannot be profiled."""
    if not 0 < options.seconds <= MAX_SECONDS:
        raise UsageError(f"--seconds is from above 0 to {MAX_SECONDS:g}, got {options.seconds:g}")
    ranks = list(inventory.parse_ranks(options.ranks)) if options.ranks else None
    beyond = [rank for rank in ranks or () if rank >= record.world_size]
    if beyond and not record.is_elastic:
        raise UsageError(f"job {record.name} has the ranks 0-{record.world_size - 1}, and no rank {beyond[0]}")
    status = ask_status(record)
    if status.has_ended:
        raise UsageError(
            f"job {record.name} has ended ({status.state}): there is nothing to profile",
            f"what it did: fab why {record.name}",
        )
    return ranks


def _output(record: Record, options: ProfileOptions) -> Path:
    named = options.output or f"profile-{record.name}-{time.strftime('%Y%m%d-%H%M%S')}.json.gz"
    path = Path(named).expanduser()
    if not path.name.endswith(".json.gz"):
        raise UsageError(f"--output is a file that ends with .json.gz, got {named!r}")
    if not path.parent.is_dir():
        raise UsageError(f"--output: there is no folder {str(path.parent)!r}")
    return path


def _refusal(record: Record, found: JobProfile) -> TorchfabError:
    """Return why no rank has a profile, with a fix for each kind of reason."""
    reasons = {f"rank {each.rank} on {each.host}": _explain(record, each.reason) for each in found.missing}
    reasons |= {host: HostError(reason) for host, reason in found.failed.items()}
    if not reasons:
        return TorchfabError(f"no rank of job {record.name} runs yet", f"see: fab status {record.name}")
    return HostsFailedError(f"no rank of job {record.name} could be profiled", reasons)


def _explain(record: Record, reason: str) -> TorchfabError:
    if reason == _NO_PROBE:
        return HostError(
            "it has no probe: launched with --no-probe, by an older torchfab, or torch.distributed is not imported yet",
            "launch without --no-probe; a script that imports torch has the probe after that",
        )
    if reason == _NO_ANSWER:
        return HostError(
            "its probe cannot profile: torch is too old (2.13 is known to work), or an older torchfab launched it",
            f"which it is: fab doctor; what the rank does: fab stacks {record.name}",
        )
    return HostError(reason)
