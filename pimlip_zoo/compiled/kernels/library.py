"""Compiled functions of one operation, made as they are asked for."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.build import compile_kernels, target
from pimlip_zoo.compiled.kernels.forks import one_thread_after_fork
from pimlip_zoo.compiled.kernels.generate import Target
from pimlip_zoo.compiled.kernels.watch import KernelCall, watchers

__all__ = ["KernelLibrary", "Noted", "build_together", "rehearsal"]

_SMALL = 1 << 16  # below this many numbers, starting threads costs more than it saves
_POINTERS = 14


class KernelLibrary:
    """From what is wanted to a function that computes it.

    Args:
        source: writes the C of a kernel, whose function is called ``kernel``.
        dtype: of all operands.
    """

    def __init__(self, source: Callable[[Hashable, Target], str], dtype: torch.dtype) -> None:
        self._source, self.dtype = source, dtype
        self.owner: object = getattr(source, "__self__", None)
        """Whose kernels these are."""
        self._functions: dict[Hashable, Callable[..., None]] = {}

    def build(self, *kernels: Hashable) -> None:
        """Have these kernels compiled together.

        Raises:
            CompilerError: when one cannot be.
        """
        build_together([(self, kernel) for kernel in kernels])

    def source(self, kernel: Hashable, machine: Target) -> str:
        """C of a kernel for another machine than this one."""
        return self._source(kernel, machine)

    def run(
        self,
        kernel: Hashable,
        *,
        rows: int,
        work: int | None,
        lists: Sequence[Tensor | None],
        operands: Sequence[Tensor | None],
        results: Sequence[Tensor | None],
    ) -> None:
        """Call a kernel.

        Args:
            kernel: which one; built if it is not yet.
            rows: how often its outer loop runs.
            work: about how many numbers it reads, few are not worth threads; None: always as many as torch has.
            lists: three lists of integers, None for a null pointer.
            operands: eight tensors, likewise.
            results: three tensors that it fills, likewise.
        """
        noted: Noted | None = getattr(_rehearsing, "noted", None)
        if noted is not None:
            noted.append((self, kernel))
            return
        function = self._functions.get(kernel)
        if function is None:
            self.build(kernel)
            function = self._functions[kernel]
        one_thread_after_fork()
        kept = [None if t is None else t.contiguous() for t in operands]
        threads = torch.get_num_threads() if work is None or work > _SMALL else 1
        pointers = [None if t is None else t.data_ptr() for t in (*lists, *kept, *results)]
        function(rows, threads, *pointers)
        for watcher in watchers():
            watcher.called(KernelCall(self, kernel, rows, work, lists, kept, results))


Noted = list[tuple[KernelLibrary, Hashable]]
_rehearsing = threading.local()


@contextmanager
def rehearsal() -> Iterator[Noted]:
    """In this block kernels are noted and not run, so that they can be compiled together: results hold anything."""
    noted: Noted = []
    _rehearsing.noted = noted
    try:
        yield noted
    finally:
        del _rehearsing.noted


def build_together(kernels: Iterable[tuple[KernelLibrary, Hashable]]) -> None:
    """Have kernels of several libraries compiled, those that are there left out.

    Raises:
        CompilerError: when one cannot be.
    """
    missing = [
        (library, kernel)
        for library, kernel in dict.fromkeys(kernels)
        if kernel not in library._functions  # noqa: SLF001
    ]
    if not missing:
        return
    sources = [library.source(kernel, target(library.dtype)) for library, kernel in missing]
    for (library, kernel), function in zip(missing, compile_kernels(sources), strict=True):
        function.argtypes = [ctypes.c_int64] * 2 + [ctypes.c_void_p] * _POINTERS  # type: ignore[attr-defined]
        function.restype = None  # type: ignore[attr-defined]
        library._functions[kernel] = function  # noqa: SLF001
