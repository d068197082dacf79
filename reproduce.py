#!/usr/bin/env python
"""Reproduce a published method, end with a verdict: `python reproduce.py --method NAME`.

The same file is the entry point of a cluster job: `ray job submit --working-dir . -- python reproduce.py ...`.
"""

import sys
from pathlib import Path


def main() -> int:
    """Run from a bare checkout as well as from an installed package."""
    root = Path(__file__).resolve().parent
    sys.path[:0] = [str(root / name) for name in ("platform", "methods") if (root / name).is_dir()]
    try:
        from wsss.commands.reproduce import main as reproduce

        return reproduce()
    except (KeyboardInterrupt, ImportError) as error:  # while modules load; from then on the command says how it ends
        from wsss.errors import ended_while_loading

        if (ending := ended_while_loading(error)) is None:
            raise
        print(ending[1], file=sys.stderr)
        return ending[0]


if __name__ == "__main__":
    sys.exit(main())
