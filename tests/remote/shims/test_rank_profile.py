"""The profile of a rank, by real torch: when it is refused, a profiler of the script beside it, the rank's end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchfab.launchers.shims import source_of

pytestmark = pytest.mark.slow

# torch's server calls the handler from a thread of its own, and so does this.
HEAD = """
import json, sys, threading, time
import torch, torch.distributed
import rank_profile
class Request:
    def __init__(self, **params): self.params = params
    def get_param(self, name): return self.params.get(name, "")
class Response:
    def set_content(self, text, kind): self.report = json.loads(text)
def ask(**params):
    response = Response()
    rank_profile.answer(Request(**params), response, "t.json.gz")
    return response.report
def begin(seconds, found):
    run = lambda: found.append(ask(start=str(time.time()), seconds=str(seconds)))
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while not (rank_profile._busy.locked() or found): time.sleep(0.001)
    return thread
def work(until=lambda: False):
    while not until(): torch.ones(8) + torch.ones(8)
"""
REFUSALS = """
seen = {"able": ask(check="1")["problem"]}
torch.__spec__._initializing = True
seen["importing"] = ask(check="1")["problem"]
torch.__spec__._initializing = False
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
    seen["own"] = ask(check="1")["problem"]
    seen["profiled"] = ask(start="0", seconds="0.1")["problem"]
schedule = torch.profiler.schedule(wait=1, warmup=1, active=1)
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], schedule=schedule) as own:
    seen["waits"] = ask(check="1")["problem"]
    own.step()
    seen["warms up"] = ask(check="1")["problem"]
    own.step()
    own.step()
del own
seen["over"] = ask(check="1")["problem"]
print(json.dumps(seen))
"""
BESIDE = """
found = []
original = torch.autograd.profiler.profile._prepare_trace
thread = begin(1.0, found)
second = ask(start="0", seconds="1")["problem"]
asked = time.monotonic()
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as own:
    waited = time.monotonic() - asked
    torch.ones(8) + torch.ones(8)
thread.join()
kept = torch.autograd.profiler.profile._prepare_trace is original
events = sorted({each.key for each in own.key_averages()})
again = []
begin(0.1, again).join()
print(json.dumps([found[0], second, waited, events, kept, again[0]["problem"]]))
"""
ENDS = """
import atexit
atexit.register(rank_profile.end)  # as the probe does
found = []
begin(30, found)
time.sleep(0.3)
print("up", flush=True)
"""


def run(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script that has the shim beside it."""
    (tmp_path / "rank_profile.py").write_text(source_of("rank_profile"))
    (tmp_path / "script.py").write_text(HEAD + script)
    return subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_rank_that_profiles_itself_or_still_imports_torch_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, REFUSALS)
    assert done.returncode == 0, done.stderr
    own = "the script profiles itself with torch.profiler, and torch bears only one at a time"
    assert json.loads(done.stdout) == {
        "able": "",
        "importing": "the script still imports torch",
        "own": own,
        "profiled": own,
        "waits": "",
        "warms up": own,
        "over": "",
    }


def test_a_profiler_that_the_script_starts_meanwhile_waits_and_then_works(tmp_path: Path) -> None:
    done = run(tmp_path, BESIDE)
    assert done.returncode == 0, done.stderr
    report, second, waited, events, kept, again = json.loads(done.stdout)
    assert report["problem"] == ""
    assert report["size"] > 0
    assert 0.99 < report["ended"] - report["begun"] < 10
    assert second == "another fab profile runs"
    assert 0.5 < waited < 30
    assert "aten::add" in events
    assert kept
    assert again == ""


def test_a_rank_that_ends_during_its_profile_ends_as_it_would_without(tmp_path: Path) -> None:
    for ending, code in (("", 0), ("raise ValueError('x')", 1)):
        begun = time.monotonic()
        done = run(tmp_path, f"{ENDS}{ending}\n")
        assert (done.returncode, done.stdout) == (code, "up\n"), done.stderr
        assert time.monotonic() - begun < 25  # it does not wait for the end of the profile
        assert not (tmp_path / "t.json.gz").exists()
