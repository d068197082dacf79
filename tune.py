#!/usr/bin/env python
"""Search settings across the stages of a method: `python tune.py --method NAME --metric METRIC`, as `wsss tune`.

The same file is the entry point of a cluster job: `ray job submit --working-dir . -- python tune.py ...`.
"""

import sys
from pathlib import Path


def main() -> int:
    """Run from a bare checkout as well as from an installed package."""
    root = Path(__file__).resolve().parent
    sys.path[:0] = [str(root / name) for name in ("platform", "methods") if (root / name).is_dir()]
    from wsss.commands.main import main as wsss

    return wsss(["tune", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
