"""Products of matrices between kernels: tiles of rows times packed panels of columns, as the kernels' own are."""

from __future__ import annotations

import torch

from pimlip_zoo.compiled.kernels.generate import Target, prelude
from pimlip_zoo.compiled.kernels.linear import TILE
from pimlip_zoo.compiled.kernels.mlp_source import mlp_functions
from pimlip_zoo.compiled.native.program import Size, TensorOp, View
from pimlip_zoo.compiled.native.tensors import pointer

_VECTORS = 3
"""Of a panel: as many as the widest block of the kernels' products."""

_SOURCE = """
/* out[i][j] = sum_k a[i * row + k * step] b[k * row_b + j * step_b], j < columns */
void kernel(int64_t threads, int64_t rows, int64_t inner, int64_t columns, const T *restrict a, int64_t row,
    int64_t step, const T *restrict b, int64_t row_b, int64_t step_b, T *restrict out, int64_t row_out) {{
  const int64_t panels = (columns + {panel} - 1) / {panel}, tiles = (rows + {tile} - 1) / {tile};
  T *packed = allocate(panels * inner * {panel});
  for (int64_t p = 0; p < panels; p++)
    for (int64_t k = 0; k < inner; k++)
      for (int64_t j = 0; j < {panel}; j++)
        packed[(p * inner + k) * {panel} + j] =
          p * {panel} + j < columns ? b[k * row_b + (p * {panel} + j) * step_b] : 0;
  #pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static, 1)
  for (int64_t t = 0; t < threads; t++) {{
    T *left = allocate({tile} * inner), *right = allocate({tile} * {panel});
    for (int64_t tile = t * tiles / threads; tile < (t + 1) * tiles / threads; tile++) {{
      const int64_t begin = tile * {tile}, count = rows - begin < {tile} ? rows - begin : {tile};
      const T *from = a + begin * row;
      int64_t from_row = row, from_step = step;
      if (count < {tile}) {{
        memset(left, 0, sizeof(T) * {tile} * inner);
        for (int64_t i = 0; i < count; i++)
          for (int64_t k = 0; k < inner; k++) left[i * inner + k] = from[i * row + k * step];
        from = left; from_row = inner; from_step = 1;
      }}
      for (int64_t p = 0; p < panels; p++) {{
        const int64_t width = columns - p * {panel} < {panel} ? columns - p * {panel} : {panel};
        const int64_t vectors = (width + {lanes} - 1) / {lanes};
        T *to = out + begin * row_out + p * {panel};
        const T *weights = packed + p * inner * {panel};
        if (count == {tile} && width % {lanes} == 0) {{
          product({tile}, inner, vectors, from, from_row, from_step, weights, {panel}, to, row_out, 0);
          continue;
        }}
        product({tile}, inner, vectors, from, from_row, from_step, weights, {panel}, right, {panel}, 0);
        for (int64_t i = 0; i < count; i++) memcpy(to + i * row_out, right + i * {panel}, sizeof(T) * width);
      }}
    }}
    free(left); free(right);
  }}
  free(packed);
}}"""


def is_product(op: object, dtype: torch.dtype) -> bool:
    """Whether an operation is a product of two matrices that :func:`product_source` computes.

    Its inner size and its columns are the same for every structure, its rows follow one another.
    """
    if not isinstance(op, TensorOp) or op.name != "mm" or len(op.args) != 2:
        return False
    a, b = op.args
    if not isinstance(a, View) or not isinstance(b, View):
        return False
    strides = (*a.strides, *b.strides, *op.out.strides)
    return (
        a.dtype == b.dtype == op.out.dtype == dtype
        and all(size.fixed for size in b.sizes)
        and all(stride.fixed for stride in strides)
        and op.out.strides[1] == Size(1)
    )


def product_source(machine: Target) -> str:
    """C of the one function that all products of a model call."""
    panel = _VECTORS * machine.lanes
    return "\n".join(
        [
            "#include <stdlib.h>",
            *prelude(machine, [machine.lanes]),
            *mlp_functions(machine, TILE),
            _SOURCE.format(tile=TILE, panel=panel, lanes=machine.lanes),
            "",
        ]
    )


def product_call(op: TensorOp, name: str, small: int) -> str:
    """C of a call; less work than ``small`` is done by one thread."""
    a, b = op.args
    rows, inner, columns = a.sizes[0].text, b.sizes[0].constant, b.sizes[1].constant
    a_row, a_step, b_row, b_step, row = (
        stride.constant for stride in (*a.strides, *b.strides, op.out.strides[0])
    )
    return (
        f"{name}(({rows}) * {inner * columns} > {small} ? threads : 1, {rows}, {inner}, {columns}, "
        f"{pointer(a)}, {a_row}, {a_step}, {pointer(b)}, {b_row}, {b_step}, {pointer(op.out)}, {row});"
    )
