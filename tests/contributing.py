"""The example method of CONTRIBUTING.md, written out: the page is code that runs."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"
EXAMPLE = "center_prior"


def write_example(root: Path) -> Path:
    """Write the page's files below `root`; returns the folder of the method."""
    text = PAGE.read_text(encoding="utf-8")
    files = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```\n", text, flags=re.DOTALL)
    assert len(files) == 8, "the page lost a file"
    for name, content in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root / "methods" / "wsss_methods" / EXAMPLE


def commands() -> list[str]:
    """The commands that the page ends with."""
    (block,) = re.findall(r"<!-- commands -->\n```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return block.strip().splitlines()
