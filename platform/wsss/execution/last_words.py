"""Says why a command has ended when Ray has ended it.

Ray's client terminates a process whose raylet is gone at its next access to the object store, without a word and with
exit code 1: no code of ours runs any more. A small process beside the command notices that and says it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

# Reads until the command says that it ends by itself, or is gone. Then it speaks if the raylet is gone as well: that of
# a command that was killed lives on for half a second and more.
_WATCHER = r"""
import os, sys, time
pipe, raylet, text = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if os.read(pipe, 1):
    sys.exit()
for _ in range(30):
    try:
        with open(f"/proc/{raylet}/stat") as file:
            gone = file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        gone = True
    if gone:
        sys.stderr.write(text)
        break
    time.sleep(0.01)
"""
_pipes: list[int] = []


def leave_last_words(raylet: int, text: str) -> None:
    """Have `text` on standard error if this process ends because its raylet, a process id, has ended."""
    take_back()
    if not sys.platform.startswith("linux"):
        return
    reading, writing = os.pipe()
    with suppress(OSError):  # no process can be started: then nobody will say it
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHER, str(reading), str(raylet), text],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(reading,),
            start_new_session=True,  # Ctrl-C in the terminal is not for it
        )
    os.close(reading)
    _pipes.append(writing)


def take_back() -> None:
    """This process ends, or leaves Ray, by itself."""
    while _pipes:
        pipe = _pipes.pop()
        with suppress(OSError):
            os.write(pipe, b".")
        os.close(pipe)
