"""A process that tracks a run and never ends by itself; the test kills it: home, uri, first and last step."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from wsss.tracking import open_tracker


def main(home: str, uri: str, first: int, last: int) -> None:
    tracker = open_tracker(uri, Path(home), "voc2012/ssc")
    parent = tracker.run("reproduce", key="r1", params={"cam": {"epochs": 8}})
    child = tracker.run("cam", key="r1/cam", parent=parent)
    for step in range(first, last):
        child.metrics({"loss": 1.0 / (step + 1)}, step=step)
    print("written", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
