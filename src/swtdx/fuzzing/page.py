# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of a campaign: figures, coverage over time, crashes, and where lies entered. One file, without scripts."""

from __future__ import annotations

from html import escape
from itertools import pairwise
from typing import Any

_WIDTH, _HEIGHT = 720, 180
_STYLE = """
:root{color-scheme:light dark;--line:#8886;--new:#2b6cb0;--crash:#d1495b}
@media(prefers-color-scheme:dark){:root{--new:#63a4e8;--crash:#f07c8c}}
body{font:15px/1.5 system-ui,"DejaVu Sans",sans-serif;margin:1.5em auto;max-width:52em;padding:0 1em;
overflow-wrap:anywhere}
h1{font-size:1.6em}h2{font-size:1.25em;margin-top:1.6em}h3{font-size:1em}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid var(--line);padding:.3em .6em;text-align:left;
vertical-align:top}td.n,th.n{text-align:right;overflow-wrap:normal}td.b,th.b{width:30%}pre{white-space:pre-wrap}
svg{display:block;width:100%;height:10em;border-bottom:1px solid var(--line)}
polyline,line{vector-effect:non-scaling-stroke}
polyline{fill:none;stroke:var(--new);stroke-width:2}.crash{stroke:var(--crash)}
figure{margin:0}figcaption{display:flex;justify-content:space-between;font-size:.85em}
.bar{background:var(--new);height:.7em;margin-top:.4em}
"""


def page(record: dict[str, Any], guest: str) -> str:
    """Return the page of what `Campaign.as_json` gives."""
    rate = f"{record['runs_per_second']:g}"
    figures = (
        f"{record['runs']:,} runs in {record['seconds']:,.0f} s ({rate} a second), {record['lies']:,} lies in "
        f"{record['calls']:,} calls, {record['blocks']:,} blocks of code, "
        f"{counted(record['corpus'], 'case')} that reached new code"
    )
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width'><title>swtdx fuzz guest: {escape(guest)}</title>",
        f"<style>{_STYLE}</style><h1>A guest whose host lies</h1><p>{escape(guest)}: {figures}</p>",
        "<h2>Coverage over time</h2>",
        _coverage(record["over_time"]),
        "<h2>Crashes</h2>",
        "".join(_crash(each) for each in record["crashes"]) or "<p>None was found.</p>",
        "<h2>Where lies entered</h2><p>Blocks that cases with a lie about this call reached first</p>",
        _counts("call", "blocks", record["entered"]),
        "<h2>How runs ended</h2>",
        _counts("outcome", "runs", record["outcomes"]),
        "</html>\n",
    ]
    return "\n".join(parts)


def _coverage(points: list[list[float]]) -> str:
    """Draw blocks over seconds, and a line where a crash was first seen."""
    seconds = max(points[-1][0], 1e-9)
    blocks = max(*(int(point[2]) for point in points), 1)

    def x(at: float) -> float:
        return round(_WIDTH * at / seconds, 1)

    def y(count: float) -> float:
        return round(_HEIGHT - (_HEIGHT - 5) * count / blocks, 1)

    path = " ".join(f"{x(at)},{y(count)}" for at, _, count, _ in points)
    crashes = [
        f"<line class=crash x1={x(now[0])} y1=0 x2={x(now[0])} y2={_HEIGHT}><title>a new crash</title></line>"
        for before, now in pairwise(points)
        if now[3] > before[3]
    ]
    new = "; a red line: a new kind of crash" if crashes else ""
    return (
        f"<figure><figcaption><span>{blocks:,} blocks{new}</span></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio=none role=img '
        f'aria-label="blocks of code over seconds">{"".join(crashes)}<polyline points="{path}" /></svg>'
        f"<figcaption><span>0 s</span><span>{seconds:,.0f} s</span></figcaption></figure>"
    )


def _crash(crash: dict[str, Any]) -> str:
    lies = "\n".join(crash["lies"])
    number = counted(len(crash["lies"]), "lie")
    return (
        f"<h3>{escape(crash['text'])}</h3><p>{number}, replayed {escape(crash['replayed'])}: "
        f"<code>{escape(crash['file'])}</code></p><pre>{escape(lies)}</pre>"
    )


def counted(number: int, what: str) -> str:
    """Return a number of things.

    >>> counted(1, "case"), counted(0, "lie"), counted(1200, "lie")
    ('1 case', '0 lies', '1,200 lies')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _counts(name: str, what: str, counts: dict[str, int]) -> str:
    most = max(counts.values(), default=1)
    rows = (_row(each, count, most) for each, count in counts.items())
    return f"<table><tr><th>{name}<th class=n>{what}<th class=b>{''.join(rows)}</table>"


def _row(name: str, count: int, most: int) -> str:
    bar = f'<div class=bar style="width:{100 * count / most:.1f}%"></div>'
    return f"<tr><td>{escape(name)}<td class=n>{count:,}<td class=b>{bar}"
