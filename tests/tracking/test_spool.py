from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from wsss.tracking.spool import (
    ROOT,
    Cursor,
    Spool,
    TrackingError,
    kept_file,
    read_cursor,
    read_events,
    write_cursor,
)


def _point(value: float, step: int) -> dict[str, object]:
    return {"kind": "metrics", "run": ROOT, "time": 1, "points": [["loss", value, step]]}


def test_events_come_back_in_order_and_from_an_offset(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "r1")
    for step in range(3):
        spool.append(_point(0.5, step))
    spool.close()
    events, end, damaged = read_events(spool.folder, 0, None)
    assert [event["points"][0][2] for event in events] == [0, 1, 2]
    assert (end, damaged) == (spool.size, 0)
    first, offset, _ = read_events(spool.folder, 0, 1)
    rest, _, _ = read_events(spool.folder, offset, None)
    assert first + rest == events


def test_a_torn_last_line_is_dropped_and_the_record_goes_on(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "r1")
    spool.append(_point(0.5, 0))
    spool.close()
    whole = spool.size
    file = spool.folder / "events.jsonl"
    with file.open("ab") as torn:
        torn.write(b'{"kind":"metrics","run":".","ti')
    assert read_events(spool.folder, 0, None)[1] == whole
    again = Spool(tmp_path, "r1")
    assert again.recorded(ROOT).values == {("loss", 0): 0.5}
    again.append(_point(0.25, 1))
    again.close()
    lines = file.read_text().splitlines()
    assert [json.loads(line)["points"][0][2] for line in lines] == [0, 1]


def test_a_damaged_line_in_the_middle_is_counted_and_passed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "r1")
    spool.append(_point(0.5, 0))
    with (spool.folder / "events.jsonl").open("ab") as file:
        file.write(b"\x00\x00\n")
    spool.close()
    again = Spool(tmp_path, "r1")
    again.append(_point(0.5, 1))
    events, _, damaged = read_events(again.folder, 0, None)
    again.close()
    assert (len(events), damaged) == (2, 1)


def test_one_writer_per_run(tmp_path: Path) -> None:
    first = Spool(tmp_path, "r1")
    with pytest.raises(TrackingError, match="another process"):
        Spool(tmp_path, "r1")
    Spool(tmp_path, "r2").close()
    first.close()
    Spool(tmp_path, "r1").close()


@pytest.mark.parametrize("run_id", ["", "../up", "a/b", ".hidden", "x" * 300])
def test_run_ids_are_folder_names(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(TrackingError, match="folder name"):
        Spool(tmp_path, run_id)


def test_threads_never_mix_their_lines(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "r1")

    def write(first: int) -> None:
        for step in range(first, first + 50):
            spool.append(_point(1.0, step))

    threads = [threading.Thread(target=write, args=(100 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spool.close()
    events, _, damaged = read_events(spool.folder, 0, None)
    assert damaged == 0
    assert len({event["points"][0][2] for event in events}) == 200


def test_kept_files_outlive_their_source(tmp_path: Path) -> None:
    source = tmp_path / "table.csv"
    source.write_text("a,b")
    spool = Spool(tmp_path, "r1")
    digest = spool.keep_file(source)
    source.unlink()
    assert kept_file(spool.folder, digest, "table.csv").read_text() == "a,b"
    with pytest.raises(TrackingError, match="could not be kept"):
        spool.keep_file(source)
    spool.close()


def test_an_unreadable_cursor_starts_over(tmp_path: Path) -> None:
    cursor = Cursor("http://host", 7, {ROOT: "abc"}, 1)
    write_cursor(tmp_path, cursor)
    assert read_cursor(tmp_path) == cursor
    (tmp_path / "cursor.json").write_text("{")
    assert read_cursor(tmp_path) == Cursor()
