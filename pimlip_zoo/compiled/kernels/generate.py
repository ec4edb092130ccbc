"""What the C of all kernels begins with: types, vectors, the one signature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_SIGNATURE = """void kernel(int64_t rows, int64_t threads, const int64_t *restrict first,
    const int32_t *restrict row, const int32_t *restrict slot,
    const T *restrict x0, const T *restrict x1, const T *restrict y0, const T *restrict y1,
    const T *restrict w0, const T *restrict w1, const T *restrict g0, const T *restrict g1,
    T *restrict out0, T *restrict out1, T *restrict out2)"""


@dataclass(frozen=True)
class Target:
    """What the source is compiled for."""

    scalar: str
    """``float`` or ``double``."""
    vector_bytes: int
    """Width of the machine's vectors: 64, 32 or 16."""
    registers: int
    """How many of them there are."""

    @property
    def lanes(self) -> int:
        """Numbers in a vector."""
        return self.vector_bytes // (4 if self.scalar == "float" else 8)


def channel_segments(channels: int, lanes: int) -> list[tuple[int, int, int]]:
    """Cut the channels into runs of whole vectors, the widest first.

    Returns:
        (first channel, end, lanes) of each run.

    >>> channel_segments(37, 16)
    [(0, 32, 16), (32, 36, 4), (36, 37, 1)]
    """
    segments, start = [], 0
    while start < channels:
        while lanes > channels - start:
            lanes //= 2
        end = start + (channels - start) // lanes * lanes
        segments.append((start, end, lanes))
        start = end
    return segments


def prelude(target: Target, lanes: Iterable[int]) -> list[str]:
    """Types and the sum over a vector's lanes, by halves, for each width up to the widest that is used."""
    lines = ["#include <stdint.h>", "#include <string.h>", f"typedef {target.scalar} T;"]
    size = 4 if target.scalar == "float" else 8
    widest = max(lanes, default=0)
    for width in (1, 2, 4, 8, 16):
        if width > widest:
            break
        if width == 1:
            lines += ["typedef T v1;", "static inline T sum1(v1 x) { return x; }"]
            continue
        half = width // 2
        lines += [
            f"typedef T v{width} __attribute__((vector_size({width * size}), aligned({size}), may_alias));",
            f"static inline T sum{width}(v{width} x) {{",
            f"  union {{ v{width} all; v{half} half[2]; }} u = {{x}}; return sum{half}(u.half[0] + u.half[1]); }}",
        ]
    return lines


def kernel_head() -> list[str]:
    """The function that every kernel is: rows of the outer loop, threads, three lists, operands, results."""
    return [_SIGNATURE, "{"]
