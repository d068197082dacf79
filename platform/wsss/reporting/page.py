"""The HTML page that reports share: one look, no script, figures by relative paths."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from wsss.reporting.plots import DOTS_PER_INCH

_PIXELS_PER_INCH = 88


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page. title: plain text; parts: HTML, in order."""
    return _PAGE.replace("{title}", html.escape(title)).replace("{body}", "\n".join(parts))


def figure(title: str, path: Path, target: Path) -> str:
    """<figure> of a PNG below `target`, as wide as it should be shown: figures are drawn denser than a screen."""
    with Image.open(path) as image:
        width = round(image.width * _PIXELS_PER_INCH / DOTS_PER_INCH)
    source = path.relative_to(target).as_posix()
    return f'<figure><img src="{source}" alt="{html.escape(title)}" width="{width}"></figure>'


def slug(text: str) -> str:
    """Part of a file name: small letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1d2329; background: #fff;
  max-width: 1180px; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.65rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
.subtitle { color: #56606b; margin: .2rem 0; }
.note { color: #56606b; font-size: .87rem; margin: .45rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .38rem .8rem .38rem 0; border-bottom: 1px solid #e6e9ed; }
th { color: #56606b; font-weight: 600; white-space: nowrap; border-bottom: 1px solid #c5cbd3; }
.right { text-align: right; white-space: nowrap; }
code { font-size: .82rem; color: #56606b; }
.outcome { font-weight: 600; white-space: nowrap; padding: .1rem .5rem; border-radius: .7rem; background: #eef0f3;
  color: #56606b; }
.reproduced { background: #dff3e4; color: #17693a; }
.above { background: #e0edfb; color: #14528f; }
.below { background: #fbe4e2; color: #a02b22; }
figure { margin: .5rem 1rem 1rem 0; display: inline-block; vertical-align: top; max-width: 100%; }
img { max-width: 100%; height: auto; }
details { border-top: 1px solid #e6e9ed; padding: .6rem 0; }
details:first-of-type { margin-top: 2.4rem; }
summary { cursor: pointer; font-weight: 600; }
</style>
</head>
<body>
{body}
</body>
</html>
"""
