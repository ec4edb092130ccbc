"""Compiles generated C with the system's compiler, once per machine, source and flags."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from pimlip_zoo.compiled.compiler import (
    CompilerError,
    cache_folder,
    compile_library,
    find_compiler,
    writable,
)
from pimlip_zoo.compiled.kernels.generate import Target
from pimlip_zoo.compiled.kernels.unit import Unit
from pimlip_zoo.compiled.private import load_private
from pimlip_zoo.files import content_hash, is_own, scratch_folder
from pimlip_zoo.processes import cores

__all__ = ["CompilerError", "cache_folder", "compile_kernels", "compiler", "machine_flags", "target"]


compiler = cache(find_compiler)
"""Looked for once in a process."""


@cache
def _compiler_version() -> str:
    done = subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.split("\n", 1)[0]


@cache
def _capability() -> str:
    """What this CPU offers: AVX512, AVX2 or DEFAULT."""
    return str(torch.backends.cpu.get_cpu_capability())


def machine_flags() -> tuple[str, ...]:
    """The instruction set, by what the CPU of this process has."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ()
    return {"AVX512": ("-march=x86-64-v4",), "AVX2": ("-march=x86-64-v3",)}.get(_capability(), ())


def target(dtype: torch.dtype) -> Target:
    """Vector width and registers that the source is written for."""
    width, registers = {"AVX512": (64, 32), "AVX2": (32, 16)}.get(_capability(), (16, 16))
    return Target("float" if dtype == torch.float32 else "double", width, registers)


@cache
def _openmp() -> tuple[str, ...]:
    """Flags to link torch's own OpenMP library, so that there is one pool of threads."""
    runtime = next((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"), None)
    return (str(runtime), f"-Wl,-rpath,{runtime.parent}") if runtime else ("-fopenmp",)


def compile_kernels(sources: Sequence[str]) -> list[Callable[..., None]]:
    """The functions of these sources, each called ``kernel`` in its own, compiled or taken from the cache.

    What is missing is compiled a few files at a time, each with several kernels. A result gets its final name by a
    link, so that of processes that build the same kernel at the same time none sees half a file.

    Raises:
        CompilerError: when one cannot be compiled.
    """
    # Written as vectors already: -O3 takes twice as long and runs no faster.
    flags = (
        "-O2",
        "-fno-tree-vectorize",
        "-fPIC",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
        *machine_flags(),
    )
    machine = (*compiler(), _compiler_version(), *flags, platform.machine(), torch.__version__, _NAME)
    digests = [hashlib.sha256("\n".join((source, *machine)).encode()).hexdigest()[:32] for source in sources]
    folder = writable(cache_folder())
    with _building:  # threads that need the same kernel compile it once
        there = _intact(folder, digests)
        for library in there.values():
            _mark_used(library)
        missing = {
            digest: source for digest, source in zip(digests, sources, strict=True) if digest not in there
        }
        units = _units(missing)
        if units:
            with ThreadPoolExecutor(min(len(units), cores())) as pool:
                for made in pool.map(lambda unit: _compile(unit[0], unit[1], flags, folder), units):
                    there.update(made)
            _forget_unused(folder)
    libraries = {path: load_private(path, path.stem.partition("-")[2]) for path in set(there.values())}
    return [libraries[there[digest]][_NAME + digest] for digest in digests]


_NAME = "kernel_"
_building = threading.Lock()
_DAY = 86_400.0
_KEPT_DAYS = 90
_CONTENT = 16
"""Digits of the hash of a file's content in its name."""
_LARGE = 40_000
"""Characters in one file, if it is not a single kernel's."""


def _units(sources: Mapping[str, str]) -> list[tuple[Unit, list[str]]]:
    """Files of kernels that have much in common, and the digests of what is in them; what takes longest first."""
    units: list[tuple[Unit, list[str]]] = []
    for digest, source in sorted(sources.items(), key=lambda item: item[1]):
        if not units or units[-1][0].size + len(source) > _LARGE:
            units.append((Unit(), []))
        units[-1][0].add(source, _NAME + digest)
        units[-1][1].append(digest)
    return sorted(units, key=lambda unit: -unit[0].size)


def _intact(folder: Path, digests: Sequence[str]) -> dict[str, Path]:
    """The kernels that are there; files whose content is not what their name says are removed.

    A library that is truncated or damaged would end the process that maps it.
    """
    wanted, found = set(digests), {}
    for library in folder.glob("*-*.so"):
        digest, _, content = library.stem.partition("-")
        if digest not in wanted or not library.is_file():  # reading a pipe would wait
            continue
        with suppress(OSError):
            if is_own(library) and content_hash(library)[:_CONTENT] == content:
                found[digest] = library
            else:
                library.unlink()
    return found


def _mark_used(library: Path) -> None:
    """Note the day on which a kernel was loaded, as the time of its file."""
    with suppress(OSError):
        if time.time() - library.stat().st_mtime > _DAY:
            library.touch()


def _forget_unused(folder: Path) -> None:
    """Remove what nobody has loaded for long, as kernels for a torch of before."""
    for library in folder.glob("*.so"):
        with suppress(OSError):
            if time.time() - library.stat().st_mtime > _KEPT_DAYS * _DAY:
                library.unlink()
                library.with_name(library.name + ".sha256").unlink(missing_ok=True)


def _compile(unit: Unit, digests: Sequence[str], flags: tuple[str, ...], folder: Path) -> dict[str, Path]:
    """Libraries by digest; all of them are one file."""
    with scratch_folder(folder, "build") as scratch:
        text, built = scratch / "kernels.c", scratch / "kernels.so"
        text.write_text("\n".join(unit.items))
        compile_library(text, built, flags=flags, openmp=_openmp())
        content = content_hash(built)[:_CONTENT]
        made = {digest: folder / f"{digest}-{content}.so" for digest in digests}
        for library in made.values():
            _place(built, library)
        return made


def _place(built: Path, library: Path) -> None:
    """Give a file a further name, at once."""
    named = built.with_name(library.name)
    try:
        os.link(built, named)
    except OSError:  # a file system without links
        shutil.copy2(built, named)
    named.replace(library)
