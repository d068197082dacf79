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
    except (KeyboardInterrupt, ImportError) as error:
        from wsss.errors import interrupted

        if interrupted(error):  # while modules load; from then on the command itself says how it ends
            print("\nStopped before it began.", file=sys.stderr)
            return 130
        if not isinstance(error, ModuleNotFoundError) or (error.name or "").startswith("wsss"):
            raise
        print(
            f"The Python package {error.name!r} is not installed for {sys.executable}.\n"
            "  do:    run `make reproduce`, or `pip install -e .` into the environment you use",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
