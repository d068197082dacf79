"""How a command ends: 0 success, 1 failed or cut off, 2 wrong usage or recipe, 130 after Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable

from wsss.commands.methods import UsageError
from wsss.errors import WsssError, interrupted
from wsss.recipe import RecipeError


def exit_code_of(command: Callable[[], int]) -> int:
    """Run a command; an expected failure is told once, without a traceback unless WSSS_DEBUG=1."""
    try:
        return command()
    except (KeyboardInterrupt, ImportError) as error:
        if not interrupted(error):
            raise
        # The end is near: one more Ctrl-C would only bring Ray's own way to it onto the screen.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print("\nStopped. Nothing that was finished is lost: the same command continues from there.", file=sys.stderr)
        return 130
    except WsssError as error:
        if os.environ.get("WSSS_DEBUG") == "1":
            traceback.print_exc()
        else:
            print(f"\nerror: {error}", file=sys.stderr)
        return 2 if isinstance(error, (UsageError, RecipeError)) else 1
    except BrokenPipeError:  # whoever reads the output, `head` for instance, has seen enough
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # the interpreter flushes it once more at its end
        return 1
    except (OSError, MemoryError) as error:
        if os.environ.get("WSSS_DEBUG") == "1":
            traceback.print_exc()
        else:
            print(f"\nerror: {_of_the_system(error)}", file=sys.stderr)
        return 1


def _of_the_system(error: OSError | MemoryError) -> WsssError:
    if isinstance(error, MemoryError):
        return WsssError(
            "the memory of this machine is used up", "this process", "end other programs, and run it again"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space there, run it again; finished stages are kept"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "use a folder that you may write to (--home, --store, TMPDIR)"
    else:
        remedy = "check that path and its disk, run it again; `WSSS_DEBUG=1` shows where in the program it was"
    return WsssError(f"the system refused: {error.strerror or error}", str(error.filename or ""), remedy)
