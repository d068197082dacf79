"""`wsss VERB ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from wsss import __version__

# verb -> (module, what it does)
VERBS = {
    "ls": ("ls", "list methods, a method's stages and recipe keys, runs, or the store"),
    "plan": ("plan", "show what a run would do and what is already there"),
    "run": ("run", "run a method's stages"),
    "score": ("score", "score a folder of label PNGs against the masks of a data set"),
    "tune": ("tune", "search settings across the stages of a pipeline"),
    "report": ("report", "write a finished run's report again"),
    "compare": ("compare", "finished runs side by side, with paired differences over the same images"),
    "explain": ("explain", "walk from a number to the stage, data, seed, commit and machine behind it"),
    "data": ("data", "check or fetch a data set"),
    "weights": ("weights", "list weight files, or download them"),
    "export": ("export_artifact", "write an artifact in the layout of the official code"),
    "import": ("import_artifact", "take a checkpoint, CAM folder or label folder in as an artifact"),
    "store": ("store", "list the store, compare it with its checksums, or clean it"),
    "rm": ("rm", "remove an artifact from the store"),
    "track": ("track", "send to the tracking server what it has not received yet"),
}


def usage() -> str:
    """The list of verbs."""
    lines = [f"usage: wsss VERB ...   (version {__version__})", ""]
    lines += [f"  {verb:8} {description}" for verb, (_, description) in VERBS.items()]
    lines += ["", "`wsss VERB --help` tells more. `python reproduce.py --method NAME` is the main job."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `wsss` command; returns the exit code."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except (KeyboardInterrupt, ImportError) as error:  # while modules load; from then on the verb says how it ends
        from wsss.errors import ended_while_loading

        if (ending := ended_while_loading(error)) is None:
            raise
        print(ending[1], file=sys.stderr)
        return ending[0]


def _run(words: list[str]) -> int:
    # What these load takes a second: Ctrl-C in it must find `main` at work.
    from wsss.commands.arguments import make_parser
    from wsss.commands.failures import exit_code_of
    from wsss.errors import nearest
    from wsss.text_file import shortened

    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(__version__)
        return 0
    if words[0] not in VERBS:
        hint = nearest(words[0], VERBS)
        print(f"error: there is no verb {shortened(words[0])!r}{hint}\n\n{usage()}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"wsss.commands.{VERBS[words[0]][0]}")
    parser = make_parser(f"wsss {words[0]}", module.__doc__, module.add_options)
    arguments = parser.parse_intermixed_args(words[1:])
    return exit_code_of(lambda: module.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
