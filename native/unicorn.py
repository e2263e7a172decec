# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the guest CPU: a patched, x86-only, static Unicorn with our VMX/SEAM engine compiled into it.

``native/patches`` holds a patch series in the form of ``git format-patch``: the message says why, the name after the
number is what tests and documents call the patch. ``native/engine`` holds our own C files. The build takes the source
distribution 2.1.4 from PyPI, checks its SHA-256, applies the series, compiles with CMake and Ninja and keeps the result
in a cache whose key is a hash of all of that: a rebuild costs nothing until something changes. A hunk whose context
does not match stops the build. To work on a patch, use ``script/engine``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

import patch_ng

VERSION = "2.1.4"
SHA256 = "00567a70e323f749b419cd86bee4f9115beab7ebba32194581c090cbb7c59cff"
LIBRARIES = ("libunicorn.a", "libx86_64-softmmu.a", "libunicorn-common.a")
HERE = Path(__file__).resolve().parent
EXTENSION = HERE.parent / "src/swtdx/cpu/_engine.pyx"
PATCHES = HERE / "patches"
ENGINE = HERE / "engine"
KEPT = 12
"""Builds in the cache: several checkouts, and the modes of each."""
CMAKE_OPTIONS = (
    "-DUNICORN_ARCH=x86",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DUNICORN_BUILD_TESTS=OFF",
    "-DUNICORN_INSTALL=OFF",
    "-DUNICORN_LEGACY_STATIC_ARCHIVE=OFF",
    "-DCMAKE_POSITION_INDEPENDENT_CODE=ON",
)

# The dialect of C in which QEMU is written, and for which Unicorn's build does not ask: signed overflow wraps, and
# memory is read as another type than it was written.
_DIALECT = "-fwrapv -fno-strict-aliasing"
_CHECKS = f"{_DIALECT} -g3 -fno-omit-frame-pointer -DCONFIG_DEBUG_TCG"
SANITIZERS = {"asan": "-fsanitize=address,undefined", "tsan": "-fsanitize=thread"}
MODES = {
    "release": ("-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_C_FLAGS={_DIALECT}"),
    "asserts": ("-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_C_FLAGS=-O2 {_CHECKS} -DCODE_BUFFER_BYTES=0x400000"),
    "debug": ("-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_C_FLAGS=-O1 {_CHECKS}"),
    **{mode: ("-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_C_FLAGS=-O1 {_CHECKS} {flag}") for mode, flag in SANITIZERS.items()},
}
"""How the engine can be compiled. All but ``release`` check the translator's assertions. In ``asserts`` the buffer of
translated code is small, so that it runs full."""


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
    return sorted(PATCHES.glob("*.patch"))


def patch_name(patch: Path) -> str:
    """What a patch is called: its file name without number and ending."""
    return patch.stem.partition("-")[2]


def build_folder(cache: Path) -> Path:
    """Where to compile: Unicorn's configure does not quote paths, so one without spaces, quotes and the like.

    Raises :class:`BuildError` when there is none.
    """
    for folder in (cache, Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):
        if re.fullmatch(r"[A-Za-z0-9_./+-]+", str(folder.resolve())) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise BuildError(f"the engine cannot be compiled below {cache}: set TMPDIR to a folder without spaces in its path")


def build_key(skip: str | None = None, mode: str = "release") -> str:
    """A hash of all that decides the result: source, series, our files, options, this recipe."""
    digest = hashlib.sha256(SHA256.encode())
    for path in [Path(__file__), *series(), *sorted(ENGINE.glob("*.[ch]"))]:
        if path not in PATCHES.glob(f"*-{skip}.patch"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(" ".join(cmake_options(mode)).encode())
    return digest.hexdigest()[:16]


def source_checksum() -> str:
    """What SWTDX_SOURCE is when the extension is compiled: it compares that with the file at each import."""
    return f"{zlib.crc32(EXTENSION.read_bytes()):#x}u"


def cmake_options(mode: str = "release") -> list[str]:
    """CMake's options for one of :data:`MODES`."""
    return [*MODES[mode], *CMAKE_OPTIONS]


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


def unpack(archive: Path, tree: Path) -> None:
    """Unpack Unicorn's sources into the new folder ``tree``."""
    with tempfile.TemporaryDirectory(dir=tree.parent) as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(scratch)
        (Path(scratch) / f"unicorn-{VERSION}" / "src").rename(tree)


def apply_series(tree: Path, skip: str | None = None) -> None:
    """Apply the series to the unpacked sources in ``tree``.

    ``skip`` leaves one patch (by name) out: that is how its test shows that the patch is needed. Raises
    :class:`BuildError` when a hunk does not match.
    """
    for patch in series():
        if patch_name(patch) == skip:
            continue
        # Not git: an sdist is built where there may be none. No fuzz: a patch that applies by luck is worse than none.
        parsed = patch_ng.fromfile(str(patch))
        if not parsed or not parsed.apply(root=str(tree), fuzz=False):
            raise BuildError(f"{patch.name} does not apply to Unicorn {VERSION}")


def configure(tree: Path, output: Path, mode: str = "release") -> list[str]:
    """The CMake command that prepares a build of ``tree`` in ``output``.

    Our C files are compiled from where they are, with Unicorn's options for its target code.
    """
    sources = ";".join(str(path) for path in sorted(ENGINE.glob("*.c")))
    ours = [f"-DSWTDX_SOURCES={sources}", f"-DSWTDX_INCLUDE={ENGINE}"]
    if shutil.which("ccache"):
        ours.append("-DCMAKE_C_COMPILER_LAUNCHER=ccache")
    return ["cmake", "-G", "Ninja", *cmake_options(mode), *ours, "-S", str(tree), "-B", str(output)]


def compiler_environment(folder: Path) -> dict[str, str]:
    """Return the environment in which ccache finds what it compiled in another folder than this build's ``folder``."""
    return {**os.environ, "CCACHE_BASEDIR": str(folder), "CCACHE_NOHASHDIR": "1"}


def build(
    cache: Path | None = None, *, verbose: bool = False, skip: str | None = None, mode: str = "release"
) -> NativeBuild:
    """Build the engine, or find it in the cache.

    Raises :class:`BuildError` when the source cannot be fetched, a patch does not apply, or the compiler fails.
    """
    cache = cache or cache_directory()
    target = cache / f"engine-{build_key(skip, mode)}"
    result = NativeBuild(
        directory=target,
        include_dirs=(ENGINE,),
        # each refers to the others: twice in this order resolves everything
        libraries=tuple(target / name for name in LIBRARIES) * 2,
    )
    if all(library.exists() for library in result.libraries):
        with contextlib.suppress(OSError):  # a cache that another user owns
            os.utime(target)  # what is used is kept longest
        return result
    cache.mkdir(parents=True, exist_ok=True)
    for tool in ("cmake", "ninja"):
        if not shutil.which(tool):
            raise BuildError(f"{tool} is needed to build the guest CPU: pip install {tool}")
    archive = fetch_source(cache)
    with tempfile.TemporaryDirectory(dir=build_folder(cache), prefix="swtdx-build-") as scratch:
        tree, output = Path(scratch) / "unicorn", Path(scratch) / "out"
        unpack(archive, tree)
        apply_series(tree, skip)
        for command in (configure(tree, output, mode), ["ninja", "-C", str(output)]):
            environment = compiler_environment(Path(scratch))
            done = subprocess.run(command, capture_output=not verbose, text=True, check=False, env=environment)
            if done.returncode:
                raise BuildError(f"{command[0]} failed:\n{(done.stdout or '')[-6000:]}{(done.stderr or '')[-2000:]}")
        with tempfile.TemporaryDirectory(dir=cache, prefix="staging-") as beside:  # the target's file system
            staging = Path(beside) / "engine"
            staging.mkdir()
            for library in set(result.libraries):
                shutil.copy(output / library.name, staging / library.name)
            shutil.rmtree(target, ignore_errors=True)
            staging.replace(target)
    prune(cache)
    return result


def prune(cache: Path, keep: int = KEPT) -> None:
    """Remove all but the builds that were used last: each change of a patch or a C file makes one of 40 MB."""
    builds = sorted(cache.glob("engine-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in builds[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def main() -> int:
    """``python native/unicorn.py``: build (or find) the engine and print where it is."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--verbose", action="store_true", help="show the compiler's output")
    parser.add_argument("--skip", metavar="PATCH", help="leave one patch of the series out (to see what it is for)")
    parser.add_argument("--mode", choices=MODES, default="release", help="how to compile it (default: %(default)s)")
    options = parser.parse_args()
    try:
        print(build(verbose=options.verbose, skip=options.skip, mode=options.mode).directory)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
