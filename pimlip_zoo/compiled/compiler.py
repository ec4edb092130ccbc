"""The system's C compiler, and where what it made is kept; needs no torch."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pimlip_zoo.commands import command_words
from pimlip_zoo.files import belongs_to_user, keep_others_out

log = logging.getLogger("pimlip_zoo")


class CompilerError(RuntimeError):
    """There is no compiler, or it refused the source."""


def find_compiler() -> tuple[str, ...]:
    """The C compiler: ``$CC``, or the first of cc, gcc, clang.

    Raises:
        CompilerError: when there is none.
    """
    if chosen := command_words("CC"):
        if shutil.which(chosen[0]):
            return tuple(chosen)
        raise CompilerError(f"CC={chosen[0]} is not an executable")
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return (path,)
    raise CompilerError("no C compiler (cc, gcc or clang) on PATH")


def cache_folder() -> Path:
    """Where libraries are kept: ``$XDG_CACHE_HOME/pimlip-zoo/kernels`` or the same in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pimlip-zoo" / "kernels"


def writable(folder: Path) -> Path:
    """This folder, made if it is not there, or one of this process where it cannot be written, or by others as well."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            if belongs_to_user(folder):
                return folder
            _say_whose(folder)
    except OSError:
        pass
    return _private_folder()


@cache
def _say_whose(folder: Path) -> None:
    log.warning(
        "%s belongs to somebody else, who could put programs there: what is compiled is kept for this process (set "
        "XDG_CACHE_HOME to a folder of your own)",
        folder,
    )


@cache
def _private_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="pimlip-zoo-kernels-"))


def compile_library(
    source: Path, built: Path, *, flags: Sequence[str], openmp: Sequence[str] = ("-fopenmp",)
) -> None:
    """Make a shared library of a C file.

    Args:
        source: the file.
        built: what to write.
        flags: of the compiler.
        openmp: those that link its runtime, behind ``-fopenmp``.

    Raises:
        CompilerError: when there is no compiler, or it refuses the source.
    """
    compiler = find_compiler()
    # Apple's clang, for one, has no OpenMP: one thread is better than no library.
    for compile_flags, link in ((("-fopenmp",), openmp), ((), ())):
        command = [*compiler, "-std=gnu11", *flags, *compile_flags, str(source), "-shared", "-o", str(built)]
        done = subprocess.run([*command, "-lm", *link], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode == 0:
            keep_others_out(built)
            return
    reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
    raise CompilerError(f"{compiler[0]} failed: {reason}")
