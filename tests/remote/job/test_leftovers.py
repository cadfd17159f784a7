"""What killed processes leave outside the job's folder: removed, unless a living process uses it."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote.place import Place, python, wait_for
from torchfab.remote import job_files
from torchfab.remote.host import shared_memory
from torchfab.remote.job import leftovers

NOT_ALIVE = 2**22 + 1  # above the largest pid that Linux gives


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of shared memory of our own."""
    if shared_memory._is_shared_unseen():
        pytest.skip("this container shares the memory of its host")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        monkeypatch.setattr(shared_memory, "FOLDER", folder)
        yield Path(folder)


@pytest.fixture
def job(place: Place, tmp_path: Path) -> Place:
    """A job that started just now, with a temporary folder of its own."""
    (tmp_path / "tmp").mkdir()
    folder = place.prepare(python("pass"), env={"TMPDIR": str(tmp_path / "tmp")})
    job_files.write_json(str(folder / job_files.STARTED), {"time": time.time()})
    return place


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"torch_{NOT_ALIVE}_123_0",
            f"__KMP_REGISTERED_LIB_{NOT_ALIVE}_0",
            "psm_1a2b3c4d",
            "sem.mp-abc",
            "sem.loky-1-x",
        ),
        *("nccl-AbCdEf", "cuda.shm.0.1f.1", "vader_segment.host.0.1.2", "ucx_shm_posix_7"),
    ],
)
def test_unused_shared_memory_is_removed(job: Place, shm: Path, name: str) -> None:
    (shm / name).write_bytes(b"x" * 1000)
    assert leftovers.clear(str(job.folder)) == {"files": 1, "bytes": 1000, "folders": 0}
    assert list(shm.iterdir()) == []


def test_what_is_not_surely_left_stays(job: Place, shm: Path, tmp_path: Path) -> None:
    (shm / "my_dataset").write_bytes(b"x")
    (shm / "psm_old").write_bytes(b"x")
    (shm / "psm_folder").mkdir()
    (shm / "nccl-link").symlink_to(tmp_path)
    (shm / f"torch_{os.getpid()}_1_0").write_bytes(b"x")  # on its way from a living process
    (shm / f"__KMP_REGISTERED_LIB_{os.getpid()}_0").write_bytes(b"x")
    job_files.write_json(str(job.folder / "agent" / job_files.STARTED), {"time": time.time() + 3600})
    assert leftovers.clear(str(job.folder))["files"] == 0
    os.unlink(shm / "psm_old")
    job_files.write_json(str(job.folder / "agent" / job_files.STARTED), {"time": time.time()})
    assert leftovers.clear(str(job.folder))["files"] == 0
    assert len(list(shm.iterdir())) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_files_of_other_users_stay(job: Place, shm: Path) -> None:
    (shm / "psm_other").write_bytes(b"x")
    os.chown(shm / "psm_other", 65534, 65534)
    assert leftovers.clear(str(job.folder))["files"] == 0


@pytest.mark.parametrize(
    "use",
    [
        "file = open(sys.argv[1])",
        "file = open(sys.argv[1], 'r+b'); view = mmap.mmap(file.fileno(), 0); file.close()",
    ],
)
def test_shared_memory_that_a_living_process_uses_stays(job: Place, shm: Path, use: str) -> None:
    (shm / "psm_used").write_bytes(b"x" * 4096)
    code = f"import mmap, sys, time; {use}; print('ready', flush=True); time.sleep(600)"
    with subprocess.Popen(python(code, str(shm / "psm_used")), stdout=subprocess.PIPE) as user:
        assert user.stdout
        assert user.stdout.readline() == b"ready\n"
        assert leftovers.clear(str(job.folder))["files"] == 0
        user.kill()
    assert leftovers.clear(str(job.folder))["files"] == 1


def test_folders_of_ended_processes_are_removed(job: Place, shm: Path, tmp_path: Path) -> None:
    tmp = tmp_path / "tmp"
    (tmp / "torchelastic_abc" / "attempt_0").mkdir(parents=True)
    for name in ("pymp-dead", "torch-shm-dir-dead", "pymp-alive", "pymp-empty"):
        (tmp / name).mkdir()
    os.chdir(tmp)  # the path of a socket is short
    kept = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for each, path in zip(kept, ("pymp-dead/listener", "torch-shm-dir-dead/manager.sock", "pymp-alive/l"), strict=True):
        each.bind(str(tmp / path) if path == "pymp-alive/l" else path)
    kept[0].close()
    kept[1].close()
    error_file = str(tmp / "torchelastic_abc" / "error.json")
    user = subprocess.Popen(["sleep", "600"], env={"TORCHELASTIC_ERROR_FILE": error_file})
    wait_for(lambda: Path(f"/proc/{user.pid}/environ").read_bytes())
    try:
        assert leftovers.clear(str(job.folder))["folders"] == 2
        assert sorted(path.name for path in tmp.iterdir()) == ["pymp-alive", "pymp-empty", "torchelastic_abc"]
    finally:
        user.kill()
        user.wait()
        kept[2].close()
        os.chdir("/")
    assert leftovers.clear(str(job.folder))["folders"] == 2
    assert [path.name for path in tmp.iterdir()] == ["pymp-empty"]


def test_the_supervisor_clears_what_its_process_has_left(place: Place) -> None:
    name = f"/dev/shm/psm_{place.job_id}"
    code, record = place.run(["sh", "-c", f"head -c 5000 /dev/zero > {name}"])
    assert (code, record["cleared"]) == (0, {"files": 1, "bytes": 5000, "folders": 0})
    assert not os.path.exists(name)
