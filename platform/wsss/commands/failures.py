"""How a command ends: 0 success, 1 failed or cut off, 2 wrong usage or recipe, 130 after Ctrl-C."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from wsss.commands.methods import UsageError
from wsss.errors import WsssError
from wsss.recipe import RecipeError


def exit_code_of(command: Callable[[], int]) -> int:
    """Run a command; an expected failure is told once, without a traceback unless WSSS_DEBUG=1."""
    try:
        return command()
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
    except KeyboardInterrupt:
        print("\nStopped. Nothing that was finished is lost: the same command continues from there.", file=sys.stderr)
        return 130
