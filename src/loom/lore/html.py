"""HTML in small pieces. Labels and errors are anybody's text: whatever is not `Html` is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Final

from loom import __version__


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Cell = str | int


def escape(text: str) -> Html:
    return Html(html.escape(text))


def join(parts: Iterable[str]) -> Html:
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def element(name: str, *content: str, **attributes: str) -> Html:
    """`class_` is written `class`, other underscores are hyphens."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{join(content)}</{name}>")


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], keys: Iterable[Sequence[Cell]] = ()) -> Html:
    """A column whose name begins with `>` is aligned to the right. `keys`: what rows are sorted by, cell by cell,
    where the reader clicks a column's head; without them rows stay in order.
    """
    right = [column.startswith(">") for column in columns]
    kinds = ["number" if one else "text" for one in right]
    head = join(element("th", column.lstrip(">"), class_=kind) for column, kind in zip(columns, kinds, strict=True))
    sort_keys = list(keys)
    body = []
    for number, row in enumerate(rows):
        own = sort_keys[number] if sort_keys else ()
        cells = []
        for position, (cell, kind) in enumerate(zip(row, kinds, strict=True)):
            text = cell if isinstance(cell, str) else f"{cell:,}"
            key = {"data_key": str(own[position])} if own else {}
            cells.append(element("td", text, class_=kind, **key))
        body.append(element("tr", *cells))
    sortable = " sortable" if sort_keys else ""
    return Html(
        f'<div class="wide"><table class="figures{sortable}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def section(title: str, *content: str, id: str) -> Html:
    return element("section", element("h2", title), *content, id=id)


def tiles(figures: Iterable[tuple[str, str]]) -> Html:
    """Large figures with what they are below."""
    return element(
        "div",
        *(element("div", element("b", value), element("span", name), class_="tile") for name, value in figures),
        class_="tiles",
    )


def swatch(colour: str) -> Html:
    return Html(f'<i class="swatch" style="background:{escape(colour)}"></i>')


def data(id: str, value: object) -> Html:
    """A JSON value for scripts of the page. No `<` is left in it, so it cannot end its element."""
    return data_text(id, json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def data_text(id: str, text: str) -> Html:
    """The same with what is JSON already."""
    return Html(f'<script type="application/json" id="{escape(id)}">{text.replace("<", chr(92) + "u003c")}</script>\n')


def asset(name: str) -> str:
    """A file that lies beside this one."""
    return (resources.files("loom.lore") / name).read_text("utf-8")


_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="Loom {version}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{css}</style>
{head}</head>
<body>
{body}
<footer>Loom {version}</footer>
{tail}<script>
{script}</script>
</body>
</html>
"""


def page(title: str, body: str, head: str = "", tail: str = "") -> str:
    """A whole file. `head` and `tail` are scripts and data before and behind the body."""
    return _PAGE.format(
        version=escape(__version__),
        title=escape(title),
        css=asset("report.css"),
        script=asset("report.js"),
        head=head,
        body=body,
        tail=tail,
    )
