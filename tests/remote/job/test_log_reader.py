"""Reading the logs of a job on a node."""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile import texts
from torchfab.remote import job_files
from torchfab.remote.job import log_reader
from torchfab.remote.job.log_reader import Reader

ALL = {"lines": None, "ranks": None, "grep": None, "follow": False}


class Job:
    """A job's folder on a node with one process for each rank, which have ended."""

    def __init__(self, root: Path, *ranks: int) -> None:
        self.root = root
        for rank in ranks or (0,):
            folder = root / f"rank-{rank}"
            folder.mkdir(parents=True)
            (folder / job_files.SPEC).write_text(json.dumps({"rank": rank}))
            end = {"time": time.time(), "code": 0, "signal": None}
            (folder / job_files.EXIT).write_text(json.dumps(end))

    def write(self, data: bytes | str, rank: int = 0) -> None:
        with open(self.root / f"rank-{rank}" / job_files.OUTPUT, "ab") as file:
            file.write(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))

    def reader(self, **request: Any) -> Reader:
        return Reader(str(self.root), {**ALL, **request})

    def stream(self, **request: Any) -> list[dict[str, Any]]:
        frames: list[dict[str, Any]] = []
        # Serialized at once, as the server does.
        log_reader.stream(
            str(self.root), "a-job", 0, {**ALL, **request}, lambda frame: frames.append(copy(frame)), lambda: False
        )
        return frames


def copy(frame: Any) -> Any:
    return json.loads(json.dumps(frame))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def texts_of(lines: list[Any]) -> list[str]:
    return [text for _, _, text in lines]


def streamed(frames: list[dict[str, Any]]) -> list[str]:
    return [text for frame in frames for text in texts_of(frame.get("lines", []))]


def read_to_the_end(reader: Reader) -> list[str]:
    found: list[str] = []
    while lines := texts_of(reader.read_new(final=True)):
        found += lines
    return found


# ---- the past


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (None, ["a", "b", "", "d"]),
        (10, ["a", "b", "", "d"]),
        (4, ["a", "b", "", "d"]),
        (2, ["", "d"]),
        (1, ["d"]),
        (0, []),
    ],
)
def test_the_last_lines_are_read(job: Job, lines: int | None, wanted: list[str]) -> None:
    job.write("a\nb\n\nd\n")
    assert texts_of(job.reader(lines=lines).read_backlog()) == wanted


@settings(max_examples=40)
@given(st.lists(st.text("ab \r", max_size=6), max_size=12), st.integers(0, 14), st.booleans())
def test_the_tail_of_any_file_is_its_last_lines(lines: list[str], count: int, ended: bool) -> None:
    with TemporaryDirectory() as name:
        job = Job(Path(name))
        job.write("".join(f"{line}\n" for line in lines) + ("" if ended else "half"))
        wanted = [line.rstrip("\r").rpartition("\r")[2] for line in lines] + ([] if ended else ["half"])
        assert streamed(job.stream(lines=count)) == (wanted[-count:] if count else [])


def test_a_tail_of_a_large_file_crosses_blocks(job: Job) -> None:
    job.write("".join(f"{number:07}\n" for number in range(100_000)))
    assert texts_of(job.reader(lines=50_000).read_backlog()) == [f"{number:07}" for number in range(50_000, 100_000)]


def test_lines_of_many_ranks_are_merged_in_the_order_of_time(tmp_path: Path) -> None:
    job = Job(tmp_path, 0, 1)
    job.write("a\nb\nlate\n", 0)
    job.write("early\nc\n", 1)
    (tmp_path / "rank-0" / job_files.TIMELINE).write_text(
        "100.00 2 output.log\n102.00 4 output.log\n105.00 9 output.log\n"
    )
    (tmp_path / "rank-1" / job_files.TIMELINE).write_text("99.00 6 output.log\n103.00 8 output.log\n")
    assert job.reader().read_backlog() == [
        [1, 99.0, "early"],
        [0, 100.0, "a"],
        [0, 102.0, "b"],
        [1, 103.0, "c"],
        [0, 105.0, "late"],
    ]


def test_only_the_requested_ranks_are_read(tmp_path: Path) -> None:
    job = Job(tmp_path, 0, 1, 2)
    for rank in range(3):
        job.write(f"from {rank}\n", rank)
    assert sorted(texts_of(job.reader(ranks=[0, 2]).read_backlog())) == ["from 0", "from 2"]
    assert job.reader(ranks=[]).read_backlog() == []
    assert job.reader(ranks=[7]).read_backlog() == []


def test_only_lines_that_match_are_read_and_counted(job: Job) -> None:
    job.write("".join(f"step {number}\nnoise\n" for number in range(10)))
    assert texts_of(job.reader(grep=r"step \d").read_backlog()) == [f"step {number}" for number in range(10)]
    assert texts_of(job.reader(grep=r"step", lines=2).read_backlog()) == ["step 8", "step 9"]
    assert texts_of(job.reader(grep=r"^nothing$").read_backlog()) == []


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"10%\r20%\r100%\n", ["100%"]),
        (b"windows\r\n", ["windows"]),
        (b"\r\n\r\n", ["", ""]),
        (b"50%\r\n", ["50%"]),
        (b"caf\xc3\xa9 \xff\n", ["café \ufffd"]),
        (b"nul\x00\n", ["nul\x00"]),
        (b"\x1b[31mred\n", ["\x1b[31mred"]),
    ],
)
def test_an_overwritten_line_is_reduced_to_its_last_state(job: Job, raw: bytes, wanted: list[str]) -> None:
    job.write(raw)
    assert texts_of(job.reader().read_backlog()) == wanted


def test_a_very_long_line_is_cut_into_pieces_without_loss(job: Job) -> None:
    job.write("x" * 200_000 + "\nend\n")
    found = texts_of(job.reader().read_backlog())
    assert [len(text) for text in found] == [65536, 65536, 65536, 200_000 - 3 * 65536, 3]


# ---- what comes


def test_read_new_returns_what_was_written_since(job: Job) -> None:
    reader = job.reader()
    job.write("a\n")
    assert texts_of(reader.read_backlog()) == ["a"]
    assert reader.read_new(final=False) == []
    job.write("b\nc\n")
    assert texts_of(reader.read_new(final=False)) == ["b", "c"]


def test_an_incomplete_line_is_held_back_until_it_is_complete(job: Job) -> None:
    reader = job.reader()
    job.write("a\nhal")
    assert texts_of(reader.read_backlog()) == ["a"]
    assert reader.read_new(final=False) == []
    job.write("f\nb")
    assert texts_of(reader.read_new(final=False)) == ["half"]
    assert texts_of(reader.read_new(final=True)) == ["b"]


def test_a_prompt_without_a_line_ending_is_shown_after_a_while(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "_PARTIAL_LINE_S", 0.0)
    reader = job.reader()
    job.write("(Pdb) ")
    assert reader.read_backlog() == []
    assert reader.read_new(final=False) == []
    assert texts_of(reader.read_new(final=False)) == ["(Pdb) "]


def test_files_that_appear_later_are_read_from_their_start(tmp_path: Path) -> None:
    job = Job(tmp_path, 0, 1)
    reader = job.reader(lines=0)
    assert reader.read_backlog() == []
    job.write("a\nb\n", 1)
    assert reader.read_new(final=False)[0][0] == 1
    job.write("c\n", 1)
    assert texts_of(reader.read_new(final=False)) == ["c"]


def test_a_file_larger_than_a_block_is_never_cut_within_a_line(job: Job) -> None:
    lines = [f"{number:06} " + "x" * 93 for number in range(10_000)]
    job.write("\n".join(lines))
    assert read_to_the_end(job.reader()) == lines


CHUNKS = st.lists(st.one_of(st.text("ab\n", max_size=8), texts(20)), max_size=15)


@settings(max_examples=40)
@given(CHUNKS, st.booleans())
def test_concatenated_reads_are_the_file(chunks: list[str], past_first: bool) -> None:
    whole = "".join(chunks).replace("\r", "")
    with TemporaryDirectory() as name:
        job, found = Job(Path(name)), []
        job.write(b"")
        reader = job.reader()
        if past_first:
            found += texts_of(reader.read_backlog())
        for chunk in chunks:
            job.write(chunk.replace("\r", ""))
            found += texts_of(reader.read_new(final=False))
        found += read_to_the_end(reader)
        data = whole.encode("utf-8", "surrogateescape").decode(errors="replace")
        assert found == data.removesuffix("\n").split("\n") if data else found == []


@settings(max_examples=40)
@given(CHUNKS, st.data())
def test_a_reader_continues_from_offsets_without_loss_or_repetition(chunks: list[str], data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        job = Job(Path(name))
        cut = data.draw(st.integers(0, len(chunks)))
        job.write("".join(chunks[:cut]).replace("\r", ""))
        first = job.reader()
        found = texts_of(first.read_backlog())
        job.write("".join(chunks[cut:]).replace("\r", ""))
        found += read_to_the_end(job.reader(offsets=json.loads(json.dumps(first.offsets))))
        assert found == texts_of(job.reader().read_backlog()) + read_to_the_end_of_the_last_line(job)


def read_to_the_end_of_the_last_line(job: Job) -> list[str]:
    reader = job.reader()
    reader.read_backlog()
    return read_to_the_end(reader)


# ---- streams


def test_a_stream_sends_lines_and_offsets_then_past_then_end(job: Job) -> None:
    job.write("a\nb")
    frames = job.stream()
    path = str(job.root / "rank-0" / job_files.OUTPUT)
    assert [sorted(frame) for frame in frames] == [["lines"], ["offsets"], ["past"], ["lines"], ["offsets"], ["end"]]
    assert frames[1] == {"offsets": {path: 2}}
    assert frames[4] == {"offsets": {path: 3}}
    assert frames[5]["end"]["processes"][0]["state"] == "succeeded"


def test_a_followed_stream_ends_with_the_job_and_is_complete(job: Job) -> None:
    lines = [f"{number:05} " + "x" * 200 for number in range(5000)]
    job.write("\n".join(lines))
    assert streamed(job.stream(follow=True)) == lines


def test_a_followed_stream_reports_a_failure_while_other_ranks_run(tmp_path: Path) -> None:
    job = Job(tmp_path, 0, 1)
    running, failed = job.root / "rank-0" / job_files.EXIT, job.root / "rank-1" / job_files.EXIT
    end = running.read_text()
    running.unlink()
    failed.write_text(json.dumps({**json.loads(end), "code": 7}))
    frames: list[dict[str, Any]] = []

    def add(frame: Any) -> None:
        frames.append(copy(frame))
        if "failed" in frame:
            running.write_text(end)

    log_reader.stream(str(job.root), "a-job", 0, {**ALL, "follow": True}, add, lambda: len(frames) > 9)
    assert [sorted(frame) for frame in frames] == [["past"], ["failed"], ["end"]]
    assert [each["state"] for each in frames[1]["failed"]["processes"]] == ["starting", "failed"]


def test_a_stream_from_offsets_sends_the_rest_in_complete_lines(job: Job) -> None:
    lines = [f"{number:05} " + "x" * 200 for number in range(5000)]
    job.write("\n".join(lines))
    path = str(job.root / "rank-0" / job_files.OUTPUT)
    frames = job.stream(offsets={path: 10 * 207})
    assert streamed(frames) == lines[10:]


def test_a_match_after_many_other_lines_is_found_in_new_lines(job: Job) -> None:
    job.write("first\n" + "noise\n" * 200_000 + "found\n")
    path = str(job.root / "rank-0" / job_files.OUTPUT)
    assert streamed(job.stream(offsets={path: 6}, grep="found")) == ["found"]


def test_a_job_that_never_stops_writing_is_not_read_forever(job: Job) -> None:
    (job.root / "rank-0" / job_files.EXIT).unlink()
    frames: list[dict[str, Any]] = []

    def write_more(frame: dict[str, Any]) -> None:
        frames.append(copy(frame))
        assert len(frames) < 1000
        job.write("again\n")

    job.write("first\n")
    log_reader.stream(str(job.root), "a-job", 0, ALL, write_more, lambda: False)
    assert streamed(frames)[0] == "first"
    assert "end" in frames[-1]


def test_a_stream_ends_when_the_launch_machine_disconnects(job: Job) -> None:
    (job.root / "rank-0" / job_files.EXIT).unlink()
    frames: list[dict[str, Any]] = []
    log_reader.stream(str(job.root), "a-job", 0, {**ALL, "follow": True}, frames.append, lambda: True)
    assert "end" in frames[-1]


def test_a_job_without_a_folder_has_no_logs_and_has_ended(tmp_path: Path) -> None:
    frames: list[dict[str, Any]] = []
    log_reader.stream(str(tmp_path / "gone"), "a-job", 0, {**ALL, "follow": True}, frames.append, lambda: False)
    assert frames[0] == {"past": True}
    assert frames[1]["end"]["exists"] is False


def test_a_frame_stays_below_the_limit_of_its_reader() -> None:
    lines = [[0, 1.0, "\0" * 65536] for _ in range(300)] + [[0, 1.0, "short"] for _ in range(1200)]
    frames = list(log_reader.split_into_frames(lines))
    assert [line for frame in frames for line in frame] == lines
    assert max(len(json.dumps({"lines": frame})) for frame in frames) < 64 * 1024 * 1024
    assert max(map(len, frames)) == 500
    assert list(log_reader.split_into_frames([])) == []
