# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of a run: its history follows from the events, and a browser shows it without a network.

Expected states follow from the interface: a page that TDH.MEM.PAGE.AUG maps is pending until TDG.MEM.PAGE.ACCEPT, one
that loses the private attribute is shared, and so on. A machine's own Secure EPT is the other witness.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from swtdx.cpu.platform import Platform
from swtdx.machine import boot
from swtdx.trace.event import from_json
from swtdx.trace.history import PageState, RunHistory
from swtdx.trace.html import page
from swtdx.uapi.client import Kvm
from swtdx.uapi.traced_kernel import TracedKernel
from testing import guest
from testing.td import MeasuredTd
from tests.cli.conftest import Command

SIZE = (1280, 800)


def event(kind: str, name: str, t: float, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "name": name, "t": t, "dur": 1.0, "tid": 1, "args": {}, **more}


def seamcall(name: str, t: float, **args: Any) -> dict[str, Any]:
    return event("seamcall", name, t, args=args, status="0x0")


SLOT = event(
    "ioctl", "KVM_SET_USER_MEMORY_REGION2", 0,
    args={"slot": "0x0", "guest_phys_addr": "0x0", "memory_size": "0x400000"}, result=0,
)  # fmt: skip


def attributes(t: float, gpa: int, size: int, value: int) -> dict[str, Any]:
    args = {"address": hex(gpa), "size": hex(size), "attributes": hex(value)}
    return event("ioctl", "KVM_SET_MEMORY_ATTRIBUTES", t, args=args, result=0)


def history(*events: dict[str, Any]) -> RunHistory:
    found = RunHistory()
    for each in events:
        found.add(from_json(each))
    found.finish()
    return found


def states(found: RunHistory) -> dict[PageState, int]:
    return {state: found.slots[0].states.count(state) for state in PageState if found.slots[0].states.count(state)}


def test_a_page_is_pending_until_it_is_accepted() -> None:
    aug = seamcall("TDH.MEM.PAGE.AUG", 10, gpa="0x200000", level=1)
    accept = event("tdcall", "TDG.MEM.PAGE.ACCEPT", 20, args={"gpa": "0x200000", "level": 1}, status="0x0")
    assert states(history(SLOT, aug)) == {PageState.UNMAPPED: 512, PageState.PENDING: 512}
    assert states(history(SLOT, aug, accept)) == {PageState.UNMAPPED: 512, PageState.PRIVATE: 512}
    again = {name: value for name, value in accept.items() if name != "status"}
    assert states(history(SLOT, aug, again)) == {PageState.UNMAPPED: 512, PageState.PENDING: 512}


def test_attributes_convert() -> None:
    private, shared = attributes(1, 0, 0x400000, 8), attributes(2, 0x1000, 0x3000, 0)
    assert states(history(SLOT, private, shared)) == {PageState.UNMAPPED: 1021, PageState.SHARED: 3}
    back = attributes(3, 0x1000, 0x1000, 8)
    assert states(history(SLOT, private, shared, back)) == {PageState.UNMAPPED: 1022, PageState.SHARED: 2}


def test_in_v10_the_guests_request_converts() -> None:
    args = {"function": "MapGPA", "gpa": hex(1 << 47 | 0x2000), "size": "0x2000"}
    call = event("tdcall", "TDG.VP.VMCALL", 5, args=args, out={"result": "0x0"}, status="0x0")
    assert states(history(SLOT, call)) == {PageState.UNMAPPED: 1022, PageState.SHARED: 2}


def test_what_failed_changed_nothing() -> None:
    refused = seamcall("TDH.MEM.PAGE.AUG", 1, gpa="0x0", level=0) | {"status": "0xc0000b0200000001"}
    failed = attributes(2, 0, 0x1000, 0) | {"errno": "EINVAL"}
    assert states(history(SLOT, refused, failed)) == {PageState.UNMAPPED: 1024}


def test_memory_is_kept_as_it_was_before_the_taking_down() -> None:
    add = seamcall("TDH.MEM.PAGE.ADD", 1, gpa="0x0", level=0)
    close = event("syscall", "close", 2, on="vCPU 0")
    remove = seamcall("TDH.MEM.PAGE.REMOVE", 3, gpa="0x0", level=0)
    assert states(history(SLOT, add, close, remove))[PageState.PRIVATE] == 1


def test_measured_and_unmeasured_runs_of_pages() -> None:
    events: list[dict[str, Any]] = [SLOT]
    for number in range(3):
        gpa = 0x10000 + number * 0x1000
        events.append(seamcall("TDH.MEM.PAGE.ADD", 1, gpa=hex(gpa), level=0))
        events += [seamcall("TDH.MR.EXTEND", 1, gpa=hex(gpa + at)) for at in range(0, 4096, 256)]
    events += [seamcall("TDH.MEM.PAGE.ADD", 1, gpa=hex(0x80000 + number * 0x1000), level=0) for number in range(2)]
    found = history(*events, seamcall("TDH.MR.FINALIZE", 9))
    assert [(run.gpa, run.pages, run.extended) for run in found.added] == [(0x10000, 3, 48), (0x80000, 2, 0)]
    assert found.finalized == 9


def test_the_secure_ept_is_the_one_that_the_module_has() -> None:
    """Tables and leaves against the machine's own memory: pages that the module holds as PT_EPT and PT_REG."""
    found = RunHistory()
    kernel = boot(platform=Platform(memory_size=2 << 30), trace=found.add)
    with Kvm(TracedKernel(kernel, found.add)) as device, MeasuredTd(device) as td:
        td.seconds(guest.Workload.TOUCH, 1)
        (kvm,) = kernel.vms
        assert kvm.mmu.mirror is not None
        mapped, tables = kvm.mmu.mirror.mapped, kernel.pages.in_use["sept"]
    assert sum(found.tables.values()) == mapped > guest.DATA_PAGES
    assert len(found.tables) == tables
    assert states(found)[PageState.PRIVATE] == mapped - 1  # the reset page has a slot of its own


def test_snapshots_stay_few_however_long_it_takes() -> None:
    found = RunHistory()
    found.add(from_json(SLOT))
    for number in range(1, 5000):
        found.add(from_json(attributes(number * 10_000.0, number % 1024 << 12, 0x1000, 8 * (number & 1))))
    found.finish()
    assert 50 < len(found.snapshots) <= 241
    assert found.snapshots[-1].time >= 49_000_000


def record(console: str = "Shell> ") -> dict[str, Any]:
    return {
        "vm_type": "tdx", "text": "the <awaited> text came", "cpus": 1, "dialect": "upstream", "memory": 4 << 20,
        "firmware": {"path": "/x/OVMF.fd"}, "kernel": "emulated", "seconds": {"build": 0.1, "run": 2.0},
        "outcome": "until", "status": 0, "console": console, "mrtd": "4c" * 48, "mrtd_source": "TDX module",
        "mrtd_order": "page by page", "rtmr": ["00" * 48] * 4,
    }  # fmt: skip


def test_the_page_needs_nothing_from_elsewhere() -> None:
    found = history(SLOT, seamcall("TDH.MEM.PAGE.ADD", 1, gpa="0x0", level=0))
    found.record = record("\x1b[2J\x1b[1;33m<b>not markup</b>\r\n")
    text = page(found)
    assert "<script" not in text
    assert not re.search(r"(?:src|href)=|url\(|@import|https?://", text)
    assert "&lt;b&gt;not markup&lt;/b&gt;" in text
    assert "\x1b" not in text
    assert "the &lt;awaited&gt; text" in text


def test_memory_is_shown_as_far_as_it_is_known() -> None:
    """An ordinary VM has no private memory; on a real host no SEAMCALL tells what of it is mapped."""
    ordinary = history(SLOT)
    ordinary.record = record() | {"vm_type": "default"}
    assert "all the host" in page(ordinary)
    outside = history(SLOT, attributes(1, 0, 0x1000, 0))
    outside.record = record()
    assert "only the kernel knows" in page(outside)
    inside = history(SLOT, seamcall("TDH.MEM.PAGE.AUG", 1, gpa="0x0", level=0))
    inside.record = record()
    assert "pending (not accepted): 4 KiB" in page(inside)


def test_a_run_that_was_cut_off_has_a_page_too() -> None:
    assert "cut off" in page(history(SLOT))
    assert "cut off" in page(history())


def pixels(path: Path) -> tuple[int, int, bytes]:
    """(width, height, RGB) of a PNG without interlacing, 8 bits a channel: what Chromium writes."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, body = 8, b""
    width = height = channels = 0
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, chunk = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", chunk)
            assert (depth, interlace) == (8, 0)
            channels = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            body += chunk
        at += 12 + length
    raw, stride = zlib.decompress(body), width * channels
    rows, before = [], bytes(stride)
    for y in range(height):
        line = bytearray(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        before = _unfiltered(raw[y * (stride + 1)], line, before, channels)
        rows.append(before)
    rgb = b"".join(row if channels == 3 else bytes(b for n, b in enumerate(row) if n % 4 != 3) for row in rows)
    return width, height, rgb


def _unfiltered(filter_type: int, line: bytearray, above: bytes, step: int) -> bytes:
    """PNG specification, 9.2."""
    for x in range(len(line)):
        left = line[x - step] if x >= step else 0
        up, corner = above[x], above[x - step] if x >= step else 0
        if filter_type == 4:
            estimate = left + up - corner
            distances = (abs(estimate - left), abs(estimate - up), abs(estimate - corner))
            predicted = (left, up, corner)[distances.index(min(distances))]
        else:
            predicted = (0, left, up, (left + up) // 2)[filter_type]
        line[x] = line[x] + predicted & 0xFF
    return bytes(line)


RECORD = {
    "vm_type": "tdx", "text": "vCPU 0 shut down: a triple fault", "firmware": {"path": "x.fd"}, "kernel": "emulated",
    "memory": 1 << 28, "cpus": 1, "seconds": {"build": 0.1, "run": 0.2}, "status": 3, "console": "",
    "details": {"vcpu": 0, "data": [1, 16], "none": None}, "explained": ["reason  the guest <did not> handle a #VE"],
}  # fmt: skip


def paged(*events: dict[str, Any], **record: Any) -> str:
    found = history(*events)
    found.record = {**RECORD, **record}
    return page(found)


def test_a_run_that_failed_says_why() -> None:
    refused = event("ioctl", "KVM_RUN", 40, args={"vcpu": 0}, errno="EIO")
    calls = [seamcall("TDH.MEM.PAGE.AUG", float(at), gpa=hex(at << 12), level=0) for at in range(30)]
    text = paged(SLOT, *calls, refused)
    assert "<header class=failed>" in text
    why = text.partition("<h2>Why</h2>")[2].partition("</section>")[0]
    assert why.startswith("<p>vCPU 0 shut down: a triple fault</p>")
    assert "the guest &lt;did not&gt; handle a #VE" in why
    assert '<th>data</th><td class="hex">0x1, 0x10</td>' in why
    assert "none" not in why
    assert "The last 24 events" in why
    assert why.count("TDH.MEM.PAGE.AUG") == 23
    assert "<tr class=refused>" in why
    assert why.rindex("EIO") > why.rindex("TDH.MEM.PAGE.AUG")


@pytest.mark.parametrize("status", [0, 130])
def test_a_run_that_did_not_fail_has_no_such_part(status: int) -> None:
    text = paged(SLOT, status=status)
    assert "<h2>Why</h2>" not in text
    assert "class=failed" not in text


def test_all_charts_have_one_time_axis_with_labels_inside_the_picture() -> None:
    """The exits end with the guest, SEAMCALLs go on while the TD is taken down."""
    exits = [event("exit", "IO", at, vcpu=0, guest=1.0) for at in (1e6, 4e6)]
    text = paged(*exits, seamcall("TDH.MNG.KEY.FREEID", 11e6))
    charts = [
        text.partition(f'aria-label="{what} over time"')[2].partition("</svg>")[0] for what in ("VM exits", "SEAMCALLs")
    ]
    axes = [re.findall(r'<text x="([\d.]+)" [^>]*>([\d.]+ s)</text>', chart) for chart in charts]
    assert axes[0] == axes[1]
    assert axes[0][-1][1] == "10 s"
    assert all(float(x) <= 640 - 24 for x, _ in axes[0])


def test_the_page_follows_the_readers_scheme_and_width() -> None:
    text = paged(SLOT, attributes(1, 0, 0x400000, 8))
    assert "color-scheme:light dark" in text
    assert "@media(prefers-color-scheme:dark)" in text
    drawn = text.partition("<main>")[2]
    assert "#e4e7eb" not in drawn  # what is unmapped has the colour of the scheme
    assert 'class="none"' in drawn
    assert drawn.count('<div class="chart"><svg') == drawn.count("</svg></div>")  # scrolls by itself where it is narrow


@pytest.fixture
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("NOT SHOWN: the page in a browser; install the package chromium")


def test_in_a_browser(chromium: str, command: Command, tmp_path: Path, ovmf_image: Path) -> None:
    """A firmware's run: all headings are laid out within the window's width, the first four of them on its first
    screen, text is neither cut off nor smaller than 11 pixels, and each state of memory that occurs is to be seen."""
    run = ["run", "--firmware", ovmf_image, "--until", "UEFI Interactive Shell"]
    result = command(*run, "--html", tmp_path / "r.html", "--trace", tmp_path / "r.jsonl.gz")
    assert result.status == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    # The page made at once is the one made of the trace.
    assert command("report", "html", tmp_path / "r.jsonl.gz", "--output", tmp_path / "later.html").status == 0
    assert (tmp_path / "later.html").read_text(encoding="utf-8") == text
    probe = """<script>addEventListener("load", () => { const found = [];
      for (const h of document.querySelectorAll("h1,h2")) { const r = h.getBoundingClientRect();
        found.push([h.textContent, Math.round(r.left), Math.round(r.right), Math.round(r.top)].join("|")); }
      let smallest = 99, cut = 0;
      for (const e of document.querySelectorAll("body *")) {
        if (e.childElementCount || !e.textContent.trim() || e.closest("style,script")) continue;
        const inSvg = e.ownerSVGElement; const scale = inSvg ? inSvg.getScreenCTM().a : 1;
        smallest = Math.min(smallest, parseFloat(getComputedStyle(e).fontSize) * scale);
        const r = e.getBoundingClientRect(); if (r.right > innerWidth + 1 || r.left < -1) cut++; }
      found.push("smallest|" + smallest.toFixed(1)); found.push("cut|" + cut);
      found.push("wide|" + (document.documentElement.scrollWidth - innerWidth));
      document.title = found.join("\\n"); });</script>"""
    (tmp_path / "probe.html").write_text(text.replace("</body>", probe + "</body>"), encoding="utf-8")
    browser = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    browser += [f"--window-size={SIZE[0]},{SIZE[1]}", f"--user-data-dir={tmp_path}/profile", "--no-first-run"]
    # No network: a page that asked for anything would not be laid out as it is.
    browser += ["--host-resolver-rules=MAP * ~NOTFOUND"]
    shot = tmp_path / "r.png"
    subprocess.run([*browser, f"--screenshot={shot}", (tmp_path / "r.html").as_uri()], check=True, timeout=120,
                   capture_output=True)  # fmt: skip
    dom = subprocess.run([*browser, "--dump-dom", (tmp_path / "probe.html").as_uri()], check=True, timeout=120,
                         capture_output=True, text=True).stdout  # fmt: skip
    match = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert match is not None
    lines = [line.split("|") for line in match[1].splitlines()]
    headings = {line[0]: tuple(map(int, line[1:])) for line in lines if len(line) == 4}
    measured = {line[0]: float(line[1]) for line in lines if len(line) == 2}
    assert {"Guest memory over time", "Measurement", "Secure EPT", "Console"} <= set(headings)
    assert all(left >= 0 and right <= SIZE[0] for left, right, _ in headings.values())
    assert sum(top < SIZE[1] - 40 for _, _, top in headings.values()) >= 5
    assert measured["smallest"] >= 11
    assert measured["cut"] == measured["wide"] == 0

    width, height, rgb = pixels(shot)
    assert (width, height) == SIZE
    colours = {rgb[at : at + 3] for at in range(0, len(rgb), 3)}
    assert bytes.fromhex("2b6cb0") in colours  # private
    assert bytes.fromhex("e4e7eb") in colours  # unmapped, at the beginning


def test_report_html(command: Command, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"kind":"trace","version":1}\n{"kind":"end","record":null}\n')
    result = command("report", "html", trace)
    assert result.status == 0
    assert result.out.strip() == str(tmp_path / "t.html")
    assert (tmp_path / "t.html").read_text().startswith("<!doctype html>")
    assert command("report", "html", trace, "--output", tmp_path / "no" / "x.html").status == 1
    assert command("report", "html", tmp_path / "nowhere").status == 3
    trace.write_text("hello\n")
    assert command("report", "html", trace).status == 2


def test_a_trace_without_operands(command: Command, tmp_path: Path) -> None:
    details = '"args":{"status":"0x0","args":{}}'
    slice = '{"name":"TDH.MEM.PAGE.ADD","cat":"seamcall","ph":"X","ts":1,"dur":1,' + details + "}"
    (tmp_path / "t.json").write_text(f"[\n{slice}\n]\n")
    result = command("report", "html", tmp_path / "t.json")
    assert result.status == 2
    assert "lacks operands" in result.err
