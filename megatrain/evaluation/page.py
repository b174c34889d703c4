"""Sections of text and tables as Markdown, and as one HTML page that needs nothing else."""

import html
from collections.abc import Sequence
from typing import NamedTuple

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .25rem .75rem; border-bottom: 1px solid #ddd; }
th { text-align: left; } td { font-variant-numeric: tabular-nums; } h2 { margin-top: 2rem; }
svg { width: 100%; height: auto; }
"""


class Table(NamedTuple):
    """Without rows it is not shown."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    title: str
    text: str
    table: Table


def markdown(title: str, sections: Sequence[Section]) -> str:
    parts = [f"# {_cell(title)}"]
    for section in sections:
        rows = [section.table.head, ["---"] * len(section.table.head), *section.table.rows]
        table = "\n".join("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows)
        parts += [f"## {section.title}", section.text, *([table] if section.table.rows else [])]
    return "\n\n".join(parts) + "\n"


def html_page(title: str, sections: Sequence[Section], curve: str) -> str:
    """
    Args:
        curve: an `<svg>` element, or nothing.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        parts += [f"<h2>{html.escape(section.title)}</h2>", f"<p>{html.escape(section.text)}</p>"]
        parts += [_table(section.table)] if section.table.rows else []
    if curve:
        parts += ["<h2>Learning curve</h2>", curve]
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(value)}</th>" for value in table.head)
    rows = ("<tr>" + "".join(f"<td>{html.escape(value)}</td>" for value in row) + "</tr>" for row in table.rows)
    return f"<table><tr>{head}</tr>\n" + "\n".join(rows) + "</table>"


def _cell(text: str) -> str:
    """Of a Markdown table: neither a column, nor a line, nor HTML begins in it."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
