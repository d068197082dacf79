"""The pages that reports share: HTML in one look, without a script, and Markdown; figures by relative paths."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from wsss.reporting.plots import DOTS_PER_INCH
from wsss.reporting.tables import Table, markdown_text, to_html, to_markdown

REPORT_FOLDER = "report"
_PIXELS_PER_INCH = 88


@dataclass(frozen=True)
class Section:
    """Figures under one heading, each a title and a PNG file."""

    title: str
    figures: Sequence[tuple[str, Path]]


@dataclass(frozen=True)
class Page:
    """A report from top to bottom, as plain text. Tables without rows and sections without figures are left out.

    Attributes:
        lead: one sentence that says what came out; empty for none.
        details: tables that the HTML page folds.
    """

    title: str
    subtitle: str
    lead: str
    notes: Sequence[str]
    blocks: Sequence[Table | Section]
    details: Sequence[Table]


def new_report_folder(folder: Path) -> tuple[Path, Path]:
    """`<folder>/report` and the empty folder for its figures; figures of an earlier report are removed."""
    target = folder / REPORT_FOLDER
    shutil.rmtree(target / "figures", ignore_errors=True)
    (target / "figures").mkdir(parents=True)
    return target, target / "figures"


def write_page(page: Page, target: Path) -> tuple[Path, Path]:
    """Write index.html and report.md; returns their paths. All figures lie below `target`."""
    web = [f"<h1>{html.escape(page.title)}</h1>", _paragraph(page.subtitle, "subtitle")]
    text = [f"# {markdown_text(page.title)}\n", f"{markdown_text(page.subtitle)}\n"]
    for words, style in ((page.lead, ""), *((note, "note") for note in page.notes)):
        if words:
            web.append(_paragraph(words, style))
            text.append(f"{markdown_text(words)}\n")
    web.append(_contents(page))
    for block in page.blocks:
        if isinstance(block, Table) and block.rows:
            web.append(f"{_heading(block.title)}\n{to_html(block)}")
            text.append(to_markdown(block))
        elif isinstance(block, Section) and block.figures:
            web.append(_heading(block.title))
            web += [_figure(title, path, target) for title, path in block.figures]
            text.append(f"## {markdown_text(block.title)}\n")
            figures = ((markdown_text(title), path.relative_to(target).as_posix()) for title, path in block.figures)
            text += [f"![{title}]({source})\n" for title, source in figures]
    for table in page.details:
        if table.rows:
            opened = " open" if table.title == "Protocol" else ""
            web.append(f'<details id="{slug(table.title)}"{opened}>')
            web.append(f"<summary>{html.escape(table.title)}</summary>{to_html(table)}</details>")
            text.append(to_markdown(table))
    head, tail = _PAGE.replace("{title}", html.escape(f"{page.title}: {page.subtitle}")).rsplit("{body}", 1)
    whole = head + "\n".join(web) + tail
    (target / "index.html").write_text(whole, encoding="utf-8")
    (target / "report.md").write_text("\n".join(text), encoding="utf-8")
    return target / "index.html", target / "report.md"


def slug(text: str) -> str:
    """Part of a file name: small letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _heading(title: str) -> str:
    return f'<h2 id="{slug(title)}">{html.escape(title)}</h2>'


def _contents(page: Page) -> str:
    """Links to all that the page shows, in its order."""
    shown = [block.title for block in page.blocks if (block.rows if isinstance(block, Table) else block.figures)]
    shown += [table.title for table in page.details if table.rows]
    links = (f'<a href="#{slug(title)}">{html.escape(title)}</a>' for title in shown)
    return f"<nav>{' · '.join(links)}</nav>"


def _paragraph(words: str, style: str) -> str:
    opening = f'<p class="{style}">' if style else "<p>"
    return f"{opening}{html.escape(words)}</p>"


def _figure(title: str, path: Path, target: Path) -> str:
    """<figure> of a PNG, as wide as it should be shown: figures are drawn denser than a screen."""
    with Image.open(path) as image:
        width = round(image.width * _PIXELS_PER_INCH / DOTS_PER_INCH)
    source = path.relative_to(target).as_posix()
    return f'<figure><img src="{source}" alt="{html.escape(title)}" width="{width}"></figure>'


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
nav { font-size: .87rem; margin: .8rem 0; }
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
