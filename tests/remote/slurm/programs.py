"""Programs in the place of Slurm's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHOW = """\
JobId=17 JobName=x JobState=COMPLETED
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   JobState={state} Reason={why} Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=7:0
   RunTime=00:00:01 TimeLimit=00:10:00 TimeMin=N/A
   StartTime=2026-11-20T20:11:21 EndTime=Unknown Deadline=N/A
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList={hosts}
   Command=/x JobState=TIMEOUT
"""


class Stubs:
    """A PATH with stub programs in place of Slurm's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def put(self, program: str, body: str) -> None:
        path = self.folder / program
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o700)


def scontrol(stubs: Stubs, state: str = "RUNNING", why: str = "None", hosts: str = "n[1-2]") -> None:
    text = SHOW.format(state=state, why=why, hosts=hosts)
    stubs.put("scontrol", f'[ "$2" = hostnames ] && printf "n1\\nn2\\n" || cat <<"EOF"\n{text}EOF')


def request(tmp_path: Path, **more: Any) -> dict[str, Any]:
    (tmp_path / "train.py").touch()
    base = {"folder": str(tmp_path / ".torchfab" / "jobs" / "gpt2-1"), "text": "#!/bin/bash\n", "options": ["time"]}
    script = {"script": "train.py", "python": "sh", "workdir": str(tmp_path), "timeout_s": 10}
    return {**base, **script, "spec": {"name": "agent"}, "secrets": {"A_TOKEN": "sesame"}, **more}
