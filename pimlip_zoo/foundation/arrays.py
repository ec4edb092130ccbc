"""Tensors and arrays of numbers from bytes, with everything that a file says about them checked against the bytes."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pimlip_zoo.errors import InputError

Storage = Tensor
"""One dimension of numbers, which tensors are views of."""

_KINDS = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_LARGEST_EMPTY = 2**20


def make_storage(kind: str, content: memoryview, count: int) -> Storage:
    """The numbers that an entry of an archive holds.

    Raises:
        InputError: for another kind of number, or another count than there are.
    """
    dtype = _KINDS.get(kind)
    if dtype is None:
        raise InputError(f"has numbers of the kind {kind[:60]}, which cannot be read")
    if count < 0 or count * dtype.itemsize != len(content):
        raise InputError(f"claims {count} numbers where there are {len(content)} bytes")
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if (
        dtype is torch.bool
    ):  # a byte beyond 0 and 1 is no truth value, and what computes with it is not defined
        return torch.frombuffer(bytearray(content), dtype=torch.uint8) != 0
    return torch.frombuffer(bytearray(content), dtype=dtype)


def tensor_view(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """A tensor of some of the numbers of a storage.

    Raises:
        InputError: when it reaches beyond them, or stands for more numbers than there are.
    """
    numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else None
    if (
        not isinstance(storage, Tensor)
        or storage.dim() != 1
        or numbers is None
        or len(size) != len(stride)
        or any(type(number) is not int or number < 0 for number in numbers)
    ):
        raise InputError("describes a tensor in a way that torch.save does not")
    count = math.prod(size)
    if count == 0:
        if math.prod(number for number in size if number) > _LARGEST_EMPTY:
            raise InputError(f"has an empty tensor of the shape {size}")
        return storage.new_empty(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= len(storage) or count > len(storage):
        raise InputError(f"has a tensor of the shape {size} and only {len(storage)} numbers for it")
    return storage.as_strided(size, stride, offset)


class DType:
    """A kind of number as numpy writes it, such as ``f8``."""

    def __init__(self, code: Any) -> None:
        self.code, self.order = code, "<"

    def set_order(self, state: Any) -> None:
        """The byte order is the second of what numpy notes down."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"

    def resolve(self) -> np.dtype[Any] | None:
        """None: not a kind of number (strings, records, Python objects)."""
        if isinstance(self.code, str) and re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", self.code):
            return np.dtype(self.order + self.code)
        return None


class PendingArray:
    """An array whose numbers come later in the file; ``places`` is where the memo refers to it."""

    def __init__(self) -> None:
        self.places: list[int] = []

    def filled(self, state: Any) -> NDArray[Any] | None:
        """The array; None when it holds something else than numbers, which is not read.

        Raises:
            InputError: when numbers are missing.
        """
        if not isinstance(state, tuple) or len(state) != 5:
            return None
        _, shape, dtype, fortran, content = state
        return numpy_array(content, dtype, shape, fortran=bool(fortran))


def numpy_array(content: Any, dtype: Any, shape: Any, *, fortran: bool) -> NDArray[Any] | None:
    """An array of numbers; None when it holds something else, which is not read.

    Raises:
        InputError: when the bytes are not those of its shape.
    """
    kind = dtype.resolve() if isinstance(dtype, DType) else None
    if kind is None or not isinstance(content, bytes | bytearray) or not isinstance(shape, tuple):
        return None
    if any(type(number) is not int or number < 0 for number in shape):
        raise InputError("has an array of numbers whose shape is none")
    if math.prod(shape) * kind.itemsize != len(content):
        raise InputError(f"has an array of the shape {shape} and {len(content)} bytes for it")
    values = np.frombuffer(content, dtype=kind).astype(kind.newbyteorder("="))
    return values.reshape(shape, order="F" if fortran else "C")


def numpy_scalar(dtype: Any, content: Any) -> Any:
    """A Python number of numpy's scalar; None when it is something else.

    Raises:
        InputError: when it has another length than its kind.
    """
    kind = dtype.resolve() if isinstance(dtype, DType) else None
    if kind is None or not isinstance(content, bytes):
        return None
    if len(content) != kind.itemsize:
        raise InputError(f"has a number of {len(content)} bytes that should have {kind.itemsize}")
    return np.frombuffer(content, dtype=kind)[0].item()
