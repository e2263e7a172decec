# SPDX-License-Identifier: GPL-2.0-or-later
"""One self-contained HTML page for a run: no script, no font, no image from elsewhere; it opens without a network.

Charts are SVG, made here from `history.RunHistory`.  Colours of memory states are far apart for every kind of
sight, and each is named in a legend; what a chart shows can be read in a table as well.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import swtdx
from swtdx.trace.history import PAGE_SHIFT, PageState, RunHistory
from swtdx.units import readable_size

_COLOURS = {
    PageState.UNMAPPED: "#e4e7eb",
    PageState.PENDING: "#f2b134",
    PageState.PRIVATE: "#2b6cb0",
    PageState.SHARED: "#d1495b",
}
_NAMES = {
    PageState.UNMAPPED: "unmapped (private, nothing there yet)",
    PageState.PENDING: "pending (not accepted)",
    PageState.PRIVATE: "private",
    PageState.SHARED: "shared with the host",
}
_NAMES_FROM_OUTSIDE = {
    PageState.UNMAPPED: "private (which of it is mapped, only the kernel knows)",
    PageState.SHARED: "shared with the host",
}
"""On a real host, where SEAMCALLs are not visible."""
_SERIES = ("#2b6cb0", "#d1495b", "#f2b134", "#3a9d5d", "#7b5ea7", "#8d99ae")
_COLUMNS = 120
_INTERRUPTED = 130
"""The exit status of a run that was interrupted."""
_LONGEST_OPERANDS = 160
_BIN_SECONDS = 0.01
_SHOWN_NAMES = 12
_LONG = 20
"""Characters from which a text in the table of measurements has the line to itself."""
_THIN = 1.3
"""Height below which a rectangle might not be seen: what is there at all is drawn as high as this."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[ -/]*[0-~])|[\x00-\x08\x0b-\x1f\x7f]")

_STYLE = """
:root{color-scheme:light dark;--ink:#1a202c;--soft:#5a6577;--line:#d5dae1;--ground:#f6f7f9;--card:#fff;--none:#e4e7eb;
--head:#1a2a44;--failed:#9b1c31}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9f0;--soft:#a3afc0;--line:#364152;--ground:#12171f;--card:#1b222d;
--none:#3a4454;--head:#223355;--failed:#86182b}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:14px/1.45 system-ui,"DejaVu Sans",sans-serif}
header{background:var(--head);color:#fff;padding:12px 20px}
header.failed{background:var(--failed)}
header h1{margin:0;font-size:19px;font-weight:600}
header p{margin:3px 0 0;font-size:14px;color:#e3e9f2;overflow-wrap:anywhere}
main{display:grid;grid-template-columns:minmax(0,1.15fr) minmax(0,1fr);gap:12px;padding:12px 20px;max-width:1700px;
margin:auto}
section{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:10px 14px;min-width:0}
section.wide{grid-column:1/-1}
h2{margin:0 0 6px;font-size:15px}
h3{margin:6px 0 0;font-size:13px;font-weight:600;color:var(--soft)}
table{border-collapse:collapse;width:100%;font-size:13px}
th{text-align:left;color:var(--soft);font-weight:600}
th,td{padding:2px 10px 2px 0;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
code,pre,.hex{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:12.5px}
.hex{overflow-wrap:anywhere}
pre{margin:0;max-height:420px;overflow:auto;background:#10161f;color:#dfe6ee;padding:10px;border-radius:4px;white-space:pre-wrap}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:12.5px;color:var(--soft);margin:4px 0 0}
.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:5px;vertical-align:-1px}
.soft{color:var(--soft);font-size:12.5px;margin:4px 0}
.chart{overflow-x:auto}
svg{display:block;width:100%;min-width:440px;height:auto}
svg text{font-size:14px;fill:var(--soft)}
.none{fill:var(--none);background:var(--none)}
.totals{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(230px,100%),1fr));gap:8px 18px}
.totals td:first-child{overflow-wrap:anywhere}
.why{border-left:4px solid var(--failed)}
.why p{margin:2px 0 8px;font-weight:600}
.events{overflow-x:auto}
.events table{min-width:760px}
.events td.n{white-space:nowrap}
.refused td{color:#d1495b;font-weight:600}
details{margin:1px 0 1px 14px}summary{cursor:pointer}
@media(max-width:900px){main{grid-template-columns:minmax(0,1fr);padding:10px}header{padding:10px 12px}}
"""


def page(history: RunHistory) -> str:
    """The page. ``history`` is finished."""
    record = history.record or {}
    title = _title(record)
    body = "\n".join(
        [
            f"<header{' class=failed' if _failed(record) else ''}><h1>{_text(title)}</h1>"
            f"<p>{_text(_subtitle(history, record))}</p></header><main>",
            _why(history, record),
            _section("Guest memory over time", _memory(history)),
            _section(
                "VM exits and SEAMCALLs over time",
                _chart(history, ("exit",), "VM exits") + _chart(history, ("seamcall",), "SEAMCALLs"),
            ),
            _section("Measurement", _measurement(history, record) or '<p class="soft">Nothing was measured.</p>'),
            _section("Secure EPT", _secure_ept(history)),
            _section("What happened how often", _totals(history), wide=True),
            _section("Console", _console(record), wide=True),
            f'</main><p class="soft" style="padding:0 20px 16px">swtdx {_text(swtdx.__version__)}; '
            f"made from {history.events:,} events.</p>",
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _section(title: str, content: str, wide: bool = False) -> str:
    return f"<section{' class=wide' if wide else ''}><h2>{_text(title)}</h2>{content}</section>"


def _title(record: dict[str, Any]) -> str:
    if not record:
        return "A run that was cut off"
    kind = "Trust Domain" if record["vm_type"] == "tdx" else "Ordinary VM"
    return f"{kind}: {record['text']}"


def _subtitle(history: RunHistory, record: dict[str, Any]) -> str:
    if not record:
        return f"{history.events:,} events; the trace has no end, so that measurements and console are not known"
    if "subtitle" in record:  # not a run of our own VMM
        return f"{record['subtitle']}; {history.events:,} events"
    cpus = f"{record['cpus']} vCPU{'s' if record['cpus'] > 1 else ''}"
    dialect = f", {record['dialect']} dialect" if record.get("dialect") else ""
    seconds = record["seconds"]
    return (
        f"{record['firmware']['path']} on the {record['kernel']} kernel{dialect}, {readable_size(record['memory'])}, "
        f"{cpus}; {seconds['build']:.2f} s to build, {seconds['run']:.2f} s running; exit status {record['status']}"
    )


# --- Why it failed ----------------------------------------------------------------------------------------------------


def _failed(record: dict[str, Any]) -> bool:
    """Whether the run ended as a failure; a run that was interrupted did not."""
    return bool(record) and record.get("status", 0) not in (0, _INTERRUPTED)


def _why(history: RunHistory, record: dict[str, Any]) -> str:
    """What is known of the end: the sentence, the rule, details such as a vCPU's state, and the last events."""
    if not _failed(record):
        return ""
    parts = [f"<p>{_text(record.get('text', ''))}</p>"]
    explained = "\n".join(record.get("explained") or ())
    if explained:
        parts.append(f"<pre>{_text(explained)}</pre>")
    details = "".join(
        f'<tr><th>{_text(name)}</th><td class="hex">{_text(_shown(value))}</td></tr>'
        for name, value in (record.get("details") or {}).items()
        if value not in (None, "", [])
    )
    if details:
        parts.append(f"<table>{details}</table>")
    if history.tail:
        parts.append(f"<h3>The last {len(history.tail)} events</h3>{_last_events(history)}")
    return f'<section class="wide why"><h2>Why</h2>{"".join(parts)}</section>'


def _shown(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | list | tuple | dict):
        return str(value)
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    return ", ".join(map(_shown, value))


def _last_events(history: RunHistory) -> str:
    rows = []
    for event in history.tail:
        what = f"{event.name} {event.args.get('function', '')}".rstrip()
        result = getattr(event, "errno", "") or getattr(event, "text", "")
        operands = ", ".join(f"{name} {_shown(value)}" for name, value in event.args.items() if name != "function")
        rows.append(
            f"<tr{' class=refused' if event.failed else ''}>"
            f'<td class="n">{(event.t - history.origin) / 1e9:.6f} s</td><td>{_text(event.kind)}</td>'
            f'<td>{_text(what)}</td><td class="hex">{_text(operands[:_LONGEST_OPERANDS])}</td>'
            f"<td>{_text(result)}</td></tr>"
        )
    head = '<tr><th class="n">time</th><th>kind</th><th>what</th><th>operands</th><th>result</th></tr>'
    return f'<div class="events"><table>{head}{"".join(rows)}</table></div>'


# --- Memory -----------------------------------------------------------------------------------------------------------


def _memory(history: RunHistory) -> str:
    """Time from left to right, addresses from top to bottom; each cell is filled as far as each state goes."""
    if not history.snapshots:
        return '<p class="soft">No memory slots are in this trace.</p>'
    if history.record and history.record["vm_type"] != "tdx":
        return '<p class="soft">The memory of an ordinary VM is all the host\'s: there is nothing to tell apart.</p>'
    width, height, left, bottom = 640, 320, 104, 22
    rows = history.rows
    shots = history.snapshots
    end = max(history.last, shots[-1].time) or 1.0
    row_height = (height - bottom) / len(rows)
    parts = [_svg(width, height, "guest memory by state over time")]
    scale = (width - left - 4) / end
    for number, shot in enumerate(shots):
        begin = shot.time if number else 0.0
        until = shots[number + 1].time if number + 1 < len(shots) else end
        x, w = left + begin * scale, max((until - begin) * scale, 0.2)
        parts += _column(shot.rows, x, w, row_height)
    for y, label in _address_labels(history, row_height):
        parts.append(f'<text x="{left - 6}" y="{y:.1f}" text-anchor="end">{label}</text>')
    parts += _time_axis(end / 1e6, left, width - 4, height)
    parts.append("</svg></div>")
    pages: Counter[PageState] = Counter()
    for slot in history.slots.values():
        for state in PageState:
            pages[state] += slot.states.count(state)
    names = _NAMES if "seamcall" in history.counts else _NAMES_FROM_OUTSIDE
    legend = "".join(
        f"<span><i {_swatch(state)}></i>{name}: {_size(pages[state])} at the end</span>"
        for state, name in names.items()
    )
    return "".join(parts) + f'<div class="legend">{legend}</div>'


def _swatch(state: PageState) -> str:
    return 'class="none"' if state is PageState.UNMAPPED else f'style="background:{_COLOURS[state]}"'


def _svg(width: int, height: int, label: str) -> str:
    return (
        f'<div class="chart"><svg viewBox="0 0 {width} {height}" shape-rendering="crispEdges" role="img" '
        f'aria-label="{label}">'
    )


def _column(rows: list[tuple[int, int, int, int]], x: float, w: float, row_height: float) -> list[str]:
    """One snapshot. Neighbouring rows in one state are one rectangle; what is thin is drawn last, so that it shows."""
    y = 0.0
    runs: list[tuple[PageState, float, float]] = []  # state, top, height
    for counts in rows:
        total = sum(counts) or 1
        for state in (PageState.PRIVATE, PageState.SHARED, PageState.PENDING, PageState.UNMAPPED):
            h = row_height * counts[state] / total
            if h and runs and runs[-1][0] is state:
                runs[-1] = (state, runs[-1][1], y + h - runs[-1][1])
            elif h:
                runs.append((state, y, h))
            y += h
    thick = [run for run in runs if run[2] >= _THIN]
    thin = [(state, top, _THIN) for state, top, h in runs if h < _THIN and state is not PageState.UNMAPPED]
    return [_rectangle(x, w, run) for run in (*thick, *thin)]


def _rectangle(x: float, w: float, run: tuple[PageState, float, float]) -> str:
    state, y, h = run
    fill = 'class="none"' if state is PageState.UNMAPPED else f'fill="{_COLOURS[state]}"'
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{w + 0.3:.2f}" height="{h:.2f}" {fill}/>'


def _address_labels(history: RunHistory, row_height: float) -> Iterator[tuple[float, str]]:
    """(y, address): where each slot begins, and every quarter of a large one."""
    last = -20.0
    by_slot: dict[int, list[int]] = {}
    for number, row in enumerate(history.rows):
        by_slot.setdefault(row.slot, []).append(number)
    for numbers in by_slot.values():
        step = max(1, len(numbers) // 4)
        for number in numbers[::step]:
            y = number * row_height + 11
            if y - last >= 13:
                yield y, f"{history.rows[number].gpa:#x}"
                last = y


def _time_axis(seconds: float, left: float, right: float, height: float) -> Iterator[str]:
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 600, 1e9) if seconds / s <= 8)
    tick = 0
    while tick * step <= seconds:
        x = left + (right - left) * tick * step / seconds if seconds else left
        anchor = "start" if tick == 0 else "middle"
        if x < right - 24:
            yield f'<text x="{x:.1f}" y="{height - 6}" text-anchor="{anchor}">{tick * step:g} s</text>'
        tick += 1


def _size(pages: int) -> str:
    kib = pages << PAGE_SHIFT - 10
    return f"{kib / 1024:,.1f} MiB" if kib >= 1024 else f"{kib} KiB"


# --- Counts over time -------------------------------------------------------------------------------------------------


def _chart(history: RunHistory, kinds: tuple[str, ...], what: str) -> str:
    """Stacked bars of the most frequent names; the rest is one series."""
    names: Counter[str] = Counter()
    bins: dict[str, Counter[int]] = {}
    for kind in kinds:
        for name, counter in history.counts.get(kind, {}).items():
            names[name] += sum(counter.values())
            bins[name] = counter
    if not names:
        return f'<p class="soft">No {what} are in this trace.</p>'
    top = [name for name, _ in names.most_common(len(_SERIES) - 1)]
    ended = int(history.last / 1e6 / _BIN_SECONDS)  # all charts of a page have one axis
    last = max(ended, *(max(counter) for counter in bins.values())) + 1
    per_column = max(1, -(-last // _COLUMNS))
    columns = -(-last // per_column)
    heights = [[0] * columns for _ in range(len(top) + 1)]
    for name, counter in bins.items():
        series = top.index(name) if name in top else len(top)
        for number, count in counter.items():
            heights[series][number // per_column] += count
    peak = max(sum(column) for column in zip(*heights, strict=True)) or 1
    width, height, left, bottom, head = 640, 150, 60, 20, 12
    bar = (width - left - 4) / columns
    parts = [f"<h3>{what} a second</h3>", _svg(width, height, f"{what} over time")]
    for column in range(columns):
        y = float(height - bottom)
        for series, values in enumerate(heights):
            h = (height - bottom - head) * values[column] / peak
            if h:
                y -= h
                parts.append(
                    f'<rect x="{left + column * bar:.2f}" y="{y:.2f}" width="{bar:.2f}" height="{h:.2f}" '
                    f'fill="{_SERIES[series]}"/>'
                )
    rate = peak / (per_column * _BIN_SECONDS)
    parts.append(f'<text x="{left - 6}" y="{head + 6}" text-anchor="end">{_short(rate)}/s</text>')
    parts.append(f'<text x="{left - 6}" y="{height - bottom}" text-anchor="end">0</text>')
    parts += _time_axis(columns * per_column * _BIN_SECONDS, left, width - 4, height)
    parts.append("</svg></div>")
    shown = [(name, names[name]) for name in top]
    rest = sum(names.values()) - sum(count for _, count in shown)
    if rest:
        shown.append(("others", rest))
    legend = "".join(
        f'<span><i style="background:{_SERIES[number]}"></i>{_text(name)} {count:,}</span>'
        for number, (name, count) in enumerate(shown)
    )
    return "".join(parts) + f'<div class="legend">{legend}</div>'


def _short(number: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


# --- Measurement ------------------------------------------------------------------------------------------------------


def _measurement(history: RunHistory, record: dict[str, Any]) -> str:
    rows = []
    if record.get("mrtd"):
        order = record.get("mrtd_order")
        verdict = f"; matches the {order.replace(' ', '-')} prediction" if order else "; does NOT match the prediction"
        source = f"{record.get('mrtd_source')}{verdict if 'mrtd_order' in record else ''}"
        rows.append(("MRTD", record["mrtd"], source))
    for number, digest in enumerate(record.get("rtmr") or []):
        times = sum(1 for _, register in history.extensions if register == number)
        shown = digest if digest.strip("0") else "all zero"
        rows.append((f"RTMR{number}", shown, _counted(times, "extension")))
    digests = "".join(
        f'<tr><th>{name}</th><td><span class="hex">{_text(digest)}</span>{_beside(digest, source)}</td></tr>'
        for name, digest, source in rows
    )
    operations = "".join(
        f'<tr><td class="hex">{run.gpa:#x}</td><td class="n">{run.pages}</td><td class="n">{run.extended:,}</td></tr>'
        for run in history.added
    )
    final = f"final at {history.finalized / 1e6:.3f} s" if history.finalized is not None else "never final"
    table = (
        '<p class="soft">What MRTD was made of, in order: TDH.MEM.PAGE.ADD of each page, and TDH.MR.EXTEND of its '
        f"contents in pieces of 256 bytes, if it is measured; {final}.</p><table>"
        f'<tr><th>GPA</th><th class="n">pages added</th><th class="n">pieces measured</th></tr>{operations}</table>'
    )
    return (f"<table>{digests}</table>" if digests else "") + (table if operations else "")


def _beside(digest: str, source: str) -> str:
    """What is said of a digest: under it, or after it where that is a word or two."""
    if len(digest) < _LONG:
        return f'<span class="soft">; {_text(source)}</span>'
    return f'<div class="soft">{_text(source)}</div>'


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


# --- Secure EPT -------------------------------------------------------------------------------------------------------


def _secure_ept(history: RunHistory) -> str:
    """A tree that can be folded: tables by level, each with what it holds."""
    tables = history.tables
    if not tables:
        return '<p class="soft">No Secure EPT is in this trace.</p>'
    highest = max(level for level, _ in tables) + 1
    small = sum(leaves for (level, _), leaves in tables.items() if level == 0)
    large = sum(leaves for (level, _), leaves in tables.items() if level == 1)
    summary = (
        f'<p class="soft">{len(tables):,} tables, {small:,} leaves of 4 KiB, {large:,} of 2 MiB, at the end of the '
        "run. A table is named by the first address that it maps.</p>"
    )
    return summary + _tree(tables, highest, 0, depth=0)


_SPANS = ("2 MiB", "1 GiB", "512 GiB", "256 TiB")


def _tree(tables: dict[tuple[int, int], int], level: int, gpa: int, depth: int) -> str:
    span = 1 << PAGE_SHIFT + 9 * (level + 1)
    below = sorted(start for at, start in tables if at == level - 1 and gpa <= start < gpa + span)
    own = tables.get((level, gpa), 0)
    size = _SPANS[level] if level < len(_SPANS) else ""
    if depth == 0:
        label = f"root (in the TDCS): {_counted(len(below), 'table')}"
    elif level == 0:
        return f'<div class="hex" style="margin-left:14px">{gpa:#x}: {own} of 512 pages</div>'
    else:
        leaves = f", {own} leaves" if own else ""
        label = f"{gpa:#x}, {size}: {_counted(len(below), 'table')}{leaves}"
    inner = "".join(_tree(tables, level - 1, start, depth + 1) for start in below)
    opened = " open" if level > 1 or len(below) <= 8 else ""
    return f'<details{opened}><summary class="hex">{label}</summary>{inner}</details>'


# --- The rest ---------------------------------------------------------------------------------------------------------


def _totals(history: RunHistory) -> str:
    cells = []
    for kind in ("ioctl", "exit", "tdcall", "seamcall", "event"):
        names = {name: sum(counter.values()) for name, counter in history.counts.get(kind, {}).items()}
        ordered = sorted(names.items(), key=lambda item: -item[1])
        shown, rest = ordered[:_SHOWN_NAMES], ordered[_SHOWN_NAMES:]
        if rest:
            shown.append((_counted(len(rest), "other"), sum(count for _, count in rest)))
        rows = "".join(f'<tr><td>{_text(name)}</td><td class="n">{count:,}</td></tr>' for name, count in shown)
        if rows:
            total = sum(names.values())
            cells.append(f'<div><table><tr><th>{kind}</th><th class="n">{total:,}</th></tr>{rows}</table></div>')
    return f'<div class="totals">{"".join(cells)}</div>'


def _console(record: dict[str, Any]) -> str:
    console = _ESCAPES.sub("", record.get("console", "").replace("\r\n", "\n"))
    lines = [line.rstrip() for line in console.splitlines()]
    shown = "\n".join(line for number, line in enumerate(lines) if line or (number and lines[number - 1]))
    return f"<pre>{_text(shown)}</pre>" if shown.strip() else '<p class="soft">The guest wrote nothing.</p>'
