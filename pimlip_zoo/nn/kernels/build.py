"""Compiles generated C with the system's compiler, once per machine, source and flags."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

import torch

from pimlip_zoo.nn.kernels.generate import Target

__all__ = ["CompilerError", "cache_folder", "compile_library", "compiler", "machine_flags", "target"]


class CompilerError(RuntimeError):
    """There is no compiler, or it refused the source."""


@cache
def compiler() -> tuple[str, ...]:
    """The C compiler: ``$CC``, or the first of cc, gcc, clang.

    Raises:
        CompilerError: when there is none.
    """
    if chosen := os.environ.get("CC", "").split():
        if shutil.which(chosen[0]):
            return tuple(chosen)
        raise CompilerError(f"CC={chosen[0]} is not an executable")
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return (path,)
    raise CompilerError("no C compiler (cc, gcc or clang) on PATH")


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


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``$XDG_CACHE_HOME/pimlip-zoo/kernels`` or the same in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pimlip-zoo" / "kernels"


@cache
def _openmp_flags() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(compile, link) flags. Torch's own OpenMP library is linked, so that there is one pool of threads."""
    runtime = next((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"), None)
    link = (str(runtime), f"-Wl,-rpath,{runtime.parent}") if runtime else ("-fopenmp",)
    return ("-fopenmp",), link


def compile_library(source: str) -> ctypes.CDLL:
    """Compile (or take from the cache) and load.

    The result gets its final name by a rename, so that of processes that build the same kernel at the same
    time none sees half a file.

    Raises:
        CompilerError: when it cannot be compiled.
    """
    # Written as vectors already: -O3 takes twice as long and runs no faster.
    flags = ("-O2", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", *machine_flags())
    key = "\n".join((source, *compiler(), _compiler_version(), *flags, platform.machine(), torch.__version__))
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    folder = _writable(cache_folder())
    library = folder / f"{digest}.so"
    with _building.setdefault(digest, threading.Lock()):  # threads that need the same kernel compile it once
        if not library.exists():
            _compile(source, flags, library)
    return ctypes.CDLL(str(library))


_building: dict[str, threading.Lock] = {}


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return _private_folder()


@cache
def _private_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="pimlip-zoo-kernels-"))


def _compile(source: str, flags: tuple[str, ...], library: Path) -> None:
    openmp, link = _openmp_flags()
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as scratch:
        text, built = Path(scratch) / "kernel.c", Path(scratch) / "kernel.so"
        text.write_text(source)
        # Apple's clang, for one, has no OpenMP: one thread is better than no kernel.
        for parallel in ((openmp, link), ((), ())):
            command = [
                *compiler(),
                "-std=gnu11",
                *flags,
                *parallel[0],
                str(text),
                "-shared",
                "-o",
                str(built),
            ]
            done = subprocess.run([*command, *parallel[1]], capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode == 0:
                built.replace(library)
                return
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise CompilerError(f"{compiler()[0]} failed: {reason}")
