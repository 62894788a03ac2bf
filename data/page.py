"""The pieces of a page: sections, pictures, tables and the page around them, without network."""

from collections.abc import Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from data.svg import to_svg


def section(title: str, content: str, note: str = "") -> str:
    """Return a part of the page.

    Args:
        title: text.
        content: HTML.
        note: HTML, small.
    """
    # Notes are ours and may hold markup; everything else is escaped where it enters.
    small = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{small}{content}</section>"


def picture(figure: Figure | None, label: str) -> str:
    """Return a picture whose ink is the page's."""
    if figure is None:
        return '<p class="missing">Too little to draw yet.</p>'
    svg = to_svg(figure, name=label)
    return f'<figure aria-label="{escape(label)}">{svg}</figure>'


def shown(value: Any) -> str:
    """Return a hyperparameter's value as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; wide ones scroll by themselves."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heading)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def whole(*, title: str, summary: str, body: str) -> str:
    """Return the page.

    Args:
        title: text.
        summary: HTML.
        body: HTML.
    """
    return _PAGE.format(title=escape(title), summary=summary, body=body)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page: #ffffff; --text: #1c1c1c; --soft: #5b5b5b; --rule: #d9d9d9; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #16181c; --text: #e4e4e4; --soft: #a2a2a2; --rule: #3a3d44; }}
}}
body {{ background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif;
  max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.1rem; margin: 2.2rem 0 .3rem; border-top: 1px solid var(--rule); padding-top: 1rem; }}
p {{ margin: .3rem 0; }}
figure {{ margin: .6rem 0; overflow-x: auto; }}
.note, .missing {{ color: var(--soft); font-size: .9rem; max-width: 80ch; }}
.warning {{ border-left: 4px solid #e69f00; padding-left: .6rem; }}
.wide {{ overflow-x: auto; margin: .6rem 0; }}
table {{ border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }}
pre {{ border: 1px solid var(--rule); padding: .5rem; font-size: .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
summary {{ cursor: pointer; color: var(--soft); }}
</style>
</head>
<body>
<h1>{title}</h1>
{summary}
{body}
</body>
</html>
"""
