# SPDX-License-Identifier: GPL-2.0-or-later
"""The documentation builds without a warning, its examples run, and no link inside it is dead."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from swtdx.cli.app import COMMANDS
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kvm import REQUESTS
from testing.places import REPOSITORY

pytest.importorskip("sphinx", reason="NOT SHOWN: that the documentation builds; install the extra dev")
pytest.importorskip("furo", reason="NOT SHOWN: that the documentation builds; install the extra dev")
pytest.importorskip("myst_parser", reason="NOT SHOWN: that the documentation builds; install the extra dev")


def sphinx(builder: str, out: Path) -> Path:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", builder, "-d", out / "doctrees"]
    done = subprocess.run(
        [*map(str, command), str(REPOSITORY / "docs"), str(out / builder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / builder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="session")
def site(built: Path) -> Path:
    return sphinx("html", built)


class Page(HTMLParser):
    """The links of a page, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def test_no_link_inside_the_site_is_dead(site: Path) -> None:
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 20
    dead = []
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            checked += 1
            if not target.exists():
                dead.append(f"{path.name}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                dead.append(f"{path.name}: {link} (no such place in the page)")
    assert dead == []
    assert checked > 500


def test_every_page_can_be_reached_from_the_first(site: Path) -> None:
    seen, left = set(), [(site / "index.html").resolve()]
    while left:
        path = left.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        for link in Page(path.read_text(encoding="utf-8")).links:
            parts = urlsplit(link)
            if not parts.scheme and parts.path.endswith(".html"):
                left.append((path.parent / parts.path).resolve())
    sources = [path for path in (REPOSITORY / "docs").rglob("*.md") if not {"_build", "_generated"} & set(path.parts)]
    for source in sources:
        assert (site / source.relative_to(REPOSITORY / "docs")).with_suffix(".html").resolve() in seen, source


def test_the_examples_in_the_pages_run(built: Path) -> None:
    out = sphinx("doctest", built)
    summary = (out / "output.txt").read_text(encoding="utf-8")
    total = int(re.findall(r"(\d+) tests?\n", summary)[-1])
    assert total >= 8, summary
    assert "0 failures in tests" in summary


def test_the_manual_page_comes_from_the_same_source(built: Path, site: Path) -> None:
    page = (sphinx("man", built) / "swtdx.1").read_text(encoding="utf-8").replace("\\-", "-")
    for command in ("run", *COMMANDS):
        assert f"swtdx {command}" in page
    assert "firmware" in page


def test_the_reference_has_everything(site: Path) -> None:
    ioctls = (site / "reference/ioctls.html").read_text(encoding="utf-8")
    assert all(name in ioctls for name in REQUESTS)
    subcommands = (site / "reference/subcommands.html").read_text(encoding="utf-8")
    for dialect in Dialect:
        assert f"Dialect {dialect.value}" in subcommands
    for name in ("KVM_TDX_INIT_MEM_REGION", "KVM_TDX_TERMINATE_VM", "reserved0"):
        assert name in subcommands
    leaves = (site / "reference/leaves.html").read_text(encoding="utf-8")
    assert "TDH.MEM.PAGE.AUG" in leaves
    assert "TDG.MEM.PAGE.ACCEPT" in leaves


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert (REPOSITORY / link).exists(), link


@pytest.mark.parametrize(("page", "steps"), [("first-touch", 19), ("one-page-measured", 14), ("one-out", 13)])
def test_a_walk_can_be_clicked_through(page: str, steps: int) -> None:
    """Every name in the last column of a walk leads to the file in which it is defined, or which it names."""
    folder = REPOSITORY / "docs/explanation"
    lines = (folder / f"{page}.md").read_text(encoding="utf-8").splitlines()
    places = [line.split(" | ")[-1] for line in lines if re.match(r"\| \d+ ", line)]
    assert len(places) == steps
    for place in places:
        assert "`" not in re.sub(r"\[`[^`]+`\]\([^)]+\)", "", place), f"a name without a link: {place}"
        for name, target in re.findall(r"\[`([^`]+)`\]\(([^)]+)\)", place):
            file = (folder / target).resolve()
            last = re.escape(name.split(".")[-1])
            definition = rf"(def|class) {last}\b|^[a-z].*\b{last}\(|\b{last} *[:=]"
            defined = re.search(definition, file.read_text(encoding="utf-8"), re.MULTILINE)
            assert defined or file.stem == name.split(".")[-1] or str(file).endswith(name), f"{name} is not in {target}"
