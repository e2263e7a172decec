# SPDX-License-Identifier: GPL-2.0-or-later
"""The workshop behind ``script/engine``: a patched source tree to edit, and builds of it that take seconds.

Everything lives in ``build/engine`` of the checkout: ``tree`` is a git repository with Unicorn as published (tag
``stock``) and one commit for each patch; ``MODE/out`` is a build directory that is kept; ``MODE/site`` is the
package with that engine in it, for ``PYTHONPATH``, so that builds of all modes can be used side by side.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import unicorn

ROOT = unicorn.HERE.parent
WORKSHOP = ROOT / "build" / "engine"
TREE = WORKSHOP / "tree"
CORE = Path("swtdx/cpu")
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
AUTHOR = ("-c", "user.name=swtdx maintainers", "-c", "user.email=maintainers@swtdx.invalid")
SANITIZERS = {
    # Python frees nothing at its end, and guests' memory is mapped and unmapped behind malloc's back.
    "asan": {
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:allow_user_segv_handler=1:use_sigaltstack=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
    # Of Python itself and of translated code it sees nothing: what remains are races between our C functions.
    "tsan": {
        "TSAN_OPTIONS": "handle_segv=0:allow_user_segv_handler=1:report_signal_unsafe=0:history_size=4:"
        f"suppressions={unicorn.HERE / 'tsan.supp'}",
    },
}
RUNTIMES = {"asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}


def run(*command: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
    """Run a command. Raises :class:`unicorn.BuildError` when it fails."""
    words = [str(word) for word in command]
    if subprocess.run(words, env=env, cwd=cwd, check=False).returncode:
        raise unicorn.BuildError(f"this failed: {' '.join(words[:6])}")


def git(*command: object) -> str:
    """Run git in the tree and return what it printed."""
    words = ["git", "-C", str(TREE), *AUTHOR, *(str(word) for word in command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise unicorn.BuildError(f"git {command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def edit() -> None:
    """Make the patched tree, or report that it exists."""
    if TREE.exists():
        print(f"{TREE} exists; 'script/engine edit --again' replaces it")
        return
    WORKSHOP.mkdir(parents=True, exist_ok=True)
    cache = unicorn.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    unicorn.unpack(unicorn.fetch_source(cache), TREE)
    try:
        git("init", "-q")
        git("add", "-fA")
        git("commit", "-qm", f"Unicorn {unicorn.VERSION} as published")
        git("tag", "stock")
        git("am", "-q", "--committer-date-is-author-date", *unicorn.series())
    except unicorn.BuildError:
        shutil.rmtree(TREE)
        raise
    print(f"{TREE}: one commit for each of {len(unicorn.series())} patches on the tag 'stock'")


def refresh() -> None:
    """Write the tree's commits to ``native/patches``. Raises :class:`unicorn.BuildError` for uncommitted changes."""
    if git("status", "--porcelain", "--untracked-files=no"):
        raise unicorn.BuildError(f"{TREE} has changes that are not committed: commit them, or fold them into a patch")
    old = {unicorn.patch_name(path): path for path in unicorn.series()}
    written = set()
    for commit in git("rev-list", "--reverse", "stock..HEAD").split():
        subject = git("show", "-s", "--format=%s", commit).strip()
        name = re.match(r"([a-z0-9-]+): ", subject)
        if not name:
            raise unicorn.BuildError(f"a subject has the form 'patch-name: imperative', this one has not: {subject}")
        newest = max([int(path.stem.partition("-")[0]) for path in [*old.values(), *written]], default=0)
        path = old.get(name[1]) or unicorn.PATCHES / f"{newest + 1:04}-{name[1]}.patch"
        options = ("--stdout", "-1", "--zero-commit", "--no-signature", "--no-numbered", "--no-stat", "--no-renames")
        path.write_bytes(git("format-patch", *options, commit).encode())
        written.add(path)
    for path in sorted(set(old.values()) - written):
        path.unlink()
        print(f"removed {path.relative_to(ROOT)}")
    names = sorted(written)
    if names != sorted(names, key=lambda path: int(path.stem.partition("-")[0])):
        raise unicorn.BuildError("the numbers of native/patches do not sort: give each four digits")
    print(f"{len(written)} patches written to {unicorn.PATCHES.relative_to(ROOT)}; 'git diff' shows what changed")


def newer(target: Path, *sources: Path) -> bool:
    """Whether ``target`` is at least as new as its sources."""
    return target.exists() and all(target.stat().st_mtime >= source.stat().st_mtime for source in sources)


def site(mode: str) -> Path:
    """The folder for ``PYTHONPATH`` in which swtdx has this mode's engine."""
    folder = WORKSHOP / mode / "site"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / CORE).mkdir(parents=True)
    for path in (ROOT / "src/swtdx").iterdir():
        if path.name != "cpu":
            (folder / "swtdx" / path.name).symlink_to(path)
    for path in (ROOT / "src" / CORE).iterdir():
        if path.suffix != ".so" and path.name != "__pycache__":
            (folder / CORE / path.name).symlink_to(path)
    return folder


def archives(mode: str) -> tuple[Path, ...]:
    """Compile what changed in the edited tree and return the libraries; without such a tree, those of the cache."""
    if not TREE.exists() and mode != "release":
        return unicorn.build(mode=mode).libraries
    edit()
    output = WORKSHOP / mode / "out"
    stamp = output / "sources"  # a new C file must be told to CMake
    sources = "\n".join(unicorn.configure(TREE, output, mode))
    if not stamp.exists() or stamp.read_text() != sources:
        run(*unicorn.configure(TREE, output, mode))
        stamp.write_text(sources)
    run("ninja", "--quiet", "-C", output, env=unicorn.compiler_environment(WORKSHOP))
    return tuple(output / name for name in unicorn.LIBRARIES)


def build(mode: str) -> Path:
    """Compile what changed and link the extension. Returns its path."""
    libraries = archives(mode)
    (WORKSHOP / mode).mkdir(parents=True, exist_ok=True)
    pyx, header = unicorn.EXTENSION, unicorn.ENGINE / "swtdx.h"
    code, thing = WORKSHOP / "_engine.c", WORKSHOP / mode / "_engine.o"
    if not newer(code, pyx):
        run(sys.executable, "-m", "cython", "-3", pyx, "-o", code)
    flags = [unicorn.SANITIZERS[mode]] if mode in SANITIZERS else []
    if not newer(thing, code, header):
        include = [f"-I{unicorn.ENGINE}", f"-I{sysconfig.get_path('include')}"]
        source = f"-DSWTDX_SOURCE={unicorn.source_checksum()}"
        run("cc", "-O1", "-g", "-fPIC", "-std=gnu11", *flags, source, *include, "-c", code, "-o", thing)
    group = ["-Wl,--start-group", *libraries, "-Wl,--end-group", "-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic"]
    extension = site(mode) / CORE / f"_engine{SUFFIX}"
    run("cc", "-shared", "-pthread", *flags, thing, *group, "-lm", "-o", extension)
    return extension


def library(name: str) -> str:
    """The path of one of the compiler's own libraries."""
    command = ["cc", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def environment(mode: str) -> dict[str, str]:
    """The environment in which Python programs use this mode's engine."""
    env = {**os.environ, "PYTHONPATH": str(WORKSHOP / mode / "site")}
    if mode in SANITIZERS:
        env |= {**SANITIZERS[mode], "PYTHONMALLOC": "malloc"}
        env["LD_PRELOAD"] = ":".join(library(name) for name in RUNTIMES[mode])
    return env


def main() -> int:
    """Parse ``script/engine``'s arguments and do what they ask for."""
    parser = argparse.ArgumentParser(
        prog="script/engine",
        description="Work on the engine: patches on Unicorn, and our own C in native/engine.",
        epilog="""examples:
  script/engine edit                       make build/engine/tree, a git repository with one commit for each patch
  script/engine build                      compile what changed (seconds) and install it in this checkout
  script/engine refresh                    write the tree's commits back to native/patches
  script/engine build asan                 a build with sanitizers, beside the installed one
  script/engine run asan -- python -m pytest tests/cpu
  script/engine run tsan -- python -m pytest tests/cpu/test_shared_memory.py tests/cpu/test_memory_order.py
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    editing = commands.add_parser("edit", help="make the patched source tree")
    editing.add_argument("--again", action="store_true", help="replace it, with all that was not refreshed")
    commands.add_parser("refresh", help="write the tree's commits to native/patches")
    building = commands.add_parser("build", help="compile what changed and link the engine")
    building.add_argument("mode", nargs="?", choices=unicorn.MODES, default="release")
    running = commands.add_parser("run", help="run a command with one of the builds")
    running.add_argument("mode", choices=unicorn.MODES)
    running.add_argument("words", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    try:
        if options.command == "edit":
            if options.again:
                shutil.rmtree(TREE, ignore_errors=True)
            edit()
        elif options.command == "refresh":
            refresh()
        elif options.command == "build":
            extension = build(options.mode)
            if options.mode == "release":
                # Not in place: a running process keeps the file that it has mapped.
                new = ROOT / "src" / CORE / f"{extension.name}.new"
                shutil.copy(extension, new)
                new.replace(new.with_suffix(""))
            print(extension)
        else:
            build(options.mode)
            os.execvpe(options.words[0], options.words, environment(options.mode))
    except unicorn.BuildError as error:
        print(f"script/engine: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
