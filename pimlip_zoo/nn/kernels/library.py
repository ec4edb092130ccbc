"""Compiled functions of one operation, made as they are asked for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from pimlip_zoo.nn.kernels.build import compile_library, target
from pimlip_zoo.nn.kernels.generate import Target
from pimlip_zoo.nn.kernels.watch import KernelCall, watchers

__all__ = ["KernelLibrary"]

_SMALL = 1 << 16  # below this many numbers, starting threads costs more than it saves
_POINTERS = 14


class KernelLibrary:
    """From what is wanted to a function that computes it.

    Args:
        source: writes the C of a kernel, whose function is called ``kernel``.
        dtype: of all operands.
    """

    def __init__(self, source: Callable[[Hashable, Target], str], dtype: torch.dtype) -> None:
        self._source, self._dtype = source, dtype
        self._functions: dict[Hashable, Callable[..., None]] = {}

    def build(self, *kernels: Hashable) -> None:
        """Have these kernels compiled, several at a time.

        Raises:
            CompilerError: when one cannot be.
        """
        missing = [kernel for kernel in dict.fromkeys(kernels) if kernel not in self._functions]
        if len(missing) > 1:
            with ThreadPoolExecutor(len(missing)) as pool:
                built = list(pool.map(self._compile, missing))
        else:
            built = [self._compile(kernel) for kernel in missing]
        self._functions.update(zip(missing, built, strict=True))

    def _compile(self, kernel: Hashable) -> Callable[..., None]:
        function = compile_library(self._source(kernel, target(self._dtype))).kernel
        function.argtypes = [ctypes.c_int64] * 2 + [ctypes.c_void_p] * _POINTERS
        function.restype = None
        return function

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
        if kernel not in self._functions:
            self.build(kernel)
        kept = [None if t is None else t.contiguous() for t in operands]
        threads = torch.get_num_threads() if work is None or work > _SMALL else 1
        pointers = [None if t is None else t.data_ptr() for t in (*lists, *kept, *results)]
        self._functions[kernel](rows, threads, *pointers)
        for watcher in watchers():
            watcher.called(KernelCall(self, kernel, rows, work, lists, kept, results))
