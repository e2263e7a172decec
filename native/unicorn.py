# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the guest CPU: a patched, x86-only, static Unicorn with our VMX/SEAM engine compiled into it.

The repository carries none of Unicorn's lines. It carries a *series* of anchored edits (``native/series/*.toml``) and
our own C files (``native/engine``). The build takes the source distribution 2.1.4 from PyPI, checks its SHA-256,
applies the series, copies our files in, compiles with CMake and Ninja and keeps the result in a cache whose key is a
hash of all of that: a rebuild costs nothing until something changes.

An edit names a file and one anchor, and says what happens there:

``after``/``before``   insert ``text`` after/before the anchor
``replace``            put ``text`` in the anchor's place

The anchor must occur exactly ``count`` times (default 1) or the build fails with the names of the file and the edit: a
series that applies by luck is worse than none. Standard library only, since this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

VERSION = "2.1.4"
SHA256 = "00567a70e323f749b419cd86bee4f9115beab7ebba32194581c090cbb7c59cff"
HERE = Path(__file__).resolve().parent
SERIES = HERE / "series"
ENGINE = HERE / "engine"
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DUNICORN_ARCH=x86",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DUNICORN_BUILD_TESTS=OFF",
    "-DUNICORN_INSTALL=OFF",
    "-DUNICORN_LEGACY_STATIC_ARCHIVE=OFF",
    "-DCMAKE_POSITION_INDEPENDENT_CODE=ON",
)


class BuildError(RuntimeError):
    """The native part cannot be built; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class NativeBuild:
    """What an extension module needs to link the engine."""

    directory: Path
    include_dirs: tuple[Path, ...]
    libraries: tuple[Path, ...]
    """Static archives, in link order."""


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/swtdx``, by default ``~/.cache/swtdx``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swtdx"


def series() -> list[Path]:
    """The patch series in order of application."""
    return sorted(SERIES.glob("*.toml"))


def build_key(skip: str | None = None) -> str:
    """A hash of all that decides the result: source, series, our files, options, this recipe."""
    digest = hashlib.sha256(SHA256.encode())
    for path in [Path(__file__), *series(), *sorted(ENGINE.glob("*.[ch]"))]:
        if path.stem != skip:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(" ".join(CMAKE_OPTIONS).encode())
    return digest.hexdigest()[:16]


def fetch_source(cache: Path) -> Path:
    """The pinned source archive: from ``SWTDX_UNICORN_SDIST``, from the cache, or from PyPI through pip."""
    name = f"unicorn-{VERSION}.tar.gz"
    given = os.environ.get("SWTDX_UNICORN_SDIST")
    archive = Path(given) if given else cache / name
    if not archive.exists():
        if given:
            raise BuildError(f"SWTDX_UNICORN_SDIST names {given}, which does not exist")
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--no-binary", ":all:", f"unicorn=={VERSION}", "--dest", scratch]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found = Path(scratch) / name
            if not found.exists():
                raise BuildError(
                    f"pip could not download {name} from PyPI (set SWTDX_UNICORN_SDIST to a copy):\n{done.stderr}"
                )
            found.replace(archive)
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != SHA256:
        raise BuildError(f"{archive} has SHA-256 {actual}, expected {SHA256}")
    return archive


def apply_series(tree: Path, skip: str | None = None) -> None:
    """Apply every edit of the series to the unpacked sources in ``tree``.

    ``skip`` leaves one patch (by stem) out: that is how its test shows that the patch is needed.
    """
    for patch in series():
        if patch.stem == skip:
            continue
        for number, edit in enumerate(tomllib.loads(patch.read_text())["edit"], 1):
            where = f"{patch.name}, edit {number} ({edit['file']})"
            path = tree / edit["file"]
            (operation,) = {"after", "before", "replace"} & edit.keys()
            anchor, text = edit[operation], edit["text"]
            content = path.read_text()
            found, expected = content.count(anchor), edit.get("count", 1)
            if found != expected:
                raise BuildError(f"{where}: the anchor occurs {found} times, expected {expected}: {anchor[:80]!r}")
            put = {"after": anchor + text, "before": text + anchor, "replace": text}[operation]
            path.write_text(content.replace(anchor, put))


def build(cache: Path | None = None, *, verbose: bool = False, skip: str | None = None) -> NativeBuild:
    """Build the engine, or find it in the cache.

    Raises :class:`BuildError` when the source is not to be had, an anchor is missing, or the compiler fails.
    """
    cache = cache or cache_directory()
    target = cache / f"engine-{build_key(skip)}"
    result = NativeBuild(
        directory=target,
        include_dirs=(ENGINE,),
        # each refers to the others: twice in this order resolves everything
        libraries=(target / "libunicorn.a", target / "libx86_64-softmmu.a", target / "libunicorn-common.a") * 2,
    )
    if all(library.exists() for library in result.libraries):
        return result
    cache.mkdir(parents=True, exist_ok=True)
    for tool in ("cmake", "ninja"):
        if not shutil.which(tool):
            raise BuildError(f"{tool} is needed to build the guest CPU: pip install {tool}")
    archive = fetch_source(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(scratch)
        tree = Path(scratch) / f"unicorn-{VERSION}" / "src"
        for source in sorted(ENGINE.glob("*.[ch]")):
            shutil.copy(source, tree / "qemu/target/i386" / source.name)
        apply_series(tree, skip)
        output = Path(scratch) / "out"
        for command in (
            ["cmake", "-G", "Ninja", *CMAKE_OPTIONS, "-S", str(tree), "-B", str(output)],
            ["ninja", "-C", str(output)],
        ):
            done = subprocess.run(command, capture_output=not verbose, text=True, check=False)
            if done.returncode:
                raise BuildError(f"{command[0]} failed:\n{(done.stdout or '')[-6000:]}{(done.stderr or '')[-2000:]}")
        staging = Path(scratch) / "staging"
        staging.mkdir()
        for library in set(result.libraries):
            shutil.copy(output / library.name, staging / library.name)
        shutil.rmtree(target, ignore_errors=True)
        staging.replace(target)
    return result


def main() -> int:
    """``python native/unicorn.py``: build (or find) the engine and print where it is."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--verbose", action="store_true", help="show the compiler's output")
    parser.add_argument("--skip", metavar="PATCH", help="leave one patch of the series out (to see what it is for)")
    options = parser.parse_args()
    try:
        print(build(verbose=options.verbose, skip=options.skip).directory)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
