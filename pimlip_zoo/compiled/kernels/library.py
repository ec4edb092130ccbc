"""Compiled functions of one operation, made as they are asked for."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from pimlip_zoo.compiled.kernels.build import compile_kernels, target
from pimlip_zoo.compiled.kernels.forks import one_thread_after_fork
from pimlip_zoo.compiled.kernels.generate import Target
from pimlip_zoo.compiled.kernels.watch import KernelCall, watchers

if TYPE_CHECKING:
    from typing_extensions import Self

_SMALL = 1 << 16  # below this many numbers, starting threads costs more than it saves
_POINTERS = 14


class KernelLibrary:
    """The kernels of one operation: from what is wanted to a function that computes it.

    A subclass writes the C of each kernel in :meth:`source`, and has methods that allocate results and :meth:`call` it.

    Args:
        dtype: of all operands.
    """

    value: ClassVar[Hashable]
    """The kernel that computes the operation itself, of those that are differentiable."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._functions: dict[Hashable, Callable[..., None]] = {}

    def prepared(self) -> Self:
        """Itself, with the first kernel built.

        Raises:
            CompilerError: when it cannot be.
        """
        self.prepare(self.value)
        return self

    def prepare(self, *kernels: Hashable) -> None:
        """Have these kernels compiled together.

        Raises:
            CompilerError: when one cannot be.
        """
        build_together([(self, kernel) for kernel in kernels])

    def source(self, kernel: Hashable, machine: Target) -> str:
        """C of a kernel for a machine, whose function is called ``kernel``."""
        raise NotImplementedError

    def call(
        self,
        kernel: Hashable,
        *,
        rows: int,
        work: int | None,
        lists: Sequence[Tensor | None] = (None, None, None),
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
            self.prepare(kernel)
            function = self._functions[kernel]
        one_thread_after_fork()
        kept = [None if t is None else t.contiguous() for t in operands]
        threads = torch.get_num_threads() if work is None or work > _SMALL else 1
        pointers = [None if t is None else t.data_ptr() for t in (*lists, *kept, *results)]
        function(rows, threads, *pointers)
        for watcher in watchers():
            watcher.called(KernelCall(self, kernel, rows, work, lists, kept, results))


Form = TypeVar("Form", bound=Hashable)


class FormLibrary(KernelLibrary, Generic[Form]):
    """The kernels of an operation that is described by a form.

    Args:
        form: what is computed.
        dtype: float32 or float64.
        channels: C, of operations whose C is written for a number of channels.
    """

    def __init__(self, form: Form, dtype: torch.dtype, channels: int = 1) -> None:
        super().__init__(dtype)
        self.form, self.channels = form, channels


Noted = list[tuple[KernelLibrary, Hashable]]
_rehearsing = threading.local()


@contextmanager
def rehearsal() -> Iterator[Noted]:
    """In this block kernels are noted and not run, so that they can be compiled together: results hold anything."""
    noted: Noted = []
    before = getattr(_rehearsing, "noted", None)
    _rehearsing.noted = noted
    try:
        yield noted
    finally:
        _rehearsing.noted = before


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
