"""C functions that compiled perceptrons share: small matrix products, silu with derivatives, moving tiles."""

from __future__ import annotations

import math

from pimlip_zoo.compiled.kernels.generate import Target

_BLOCK = """
static inline void block{width}(int64_t n, const T *restrict a, int64_t row, int64_t step,
    const T *restrict b, int64_t ldb, T *restrict c, int64_t ldc, int add) {{
  V sum[{rows}][{width}];
  #pragma GCC unroll 8
  for (int i = 0; i < {rows}; i++)
    #pragma GCC unroll 3
    for (int j = 0; j < {width}; j++) sum[i][j] = add ? *(V *)(c + i * ldc + j * {lanes}) : (V){{0}};
  for (int64_t k = 0; k < n; k++) {{
    V right[{width}];
    #pragma GCC unroll 3
    for (int j = 0; j < {width}; j++) right[j] = *(const V *)(b + k * ldb + j * {lanes});
    #pragma GCC unroll 8
    for (int i = 0; i < {rows}; i++) {{
      const T left = a[i * row + k * step];
      #pragma GCC unroll 3
      for (int j = 0; j < {width}; j++) sum[i][j] += left * right[j];
    }}
  }}
  #pragma GCC unroll 8
  for (int i = 0; i < {rows}; i++)
    #pragma GCC unroll 3
    for (int j = 0; j < {width}; j++) *(V *)(c + i * ldc + j * {lanes}) = sum[i][j];
}}"""

_PRODUCT = """
/* c[i][j] (+)= sum_k a[i * row + k * step] b[k][j]; rows of c in multiples of {rows}, columns of whole vectors. */
static void product(int64_t m, int64_t n, int64_t vectors, const T *a, int64_t row, int64_t step,
    const T *b, int64_t ldb, T *c, int64_t ldc, int add) {{
  for (int64_t j = 0; j < vectors;) {{
    const int64_t left = vectors - j, width = left == 4 ? 2 : left < 3 ? left : 3;
    const T *bj = b + j * {lanes}; T *cj = c + j * {lanes};
    for (int64_t i = 0; i < m; i += {rows}) {{
      if (width == 3) block3(n, a + i * row, row, step, bj, ldb, cj + i * ldc, ldc, add);
      else if (width == 2) block2(n, a + i * row, row, step, bj, ldb, cj + i * ldc, ldc, add);
      else block1(n, a + i * row, row, step, bj, ldb, cj + i * ldc, ldc, add);
    }}
    j += width;
  }}
}}"""

_ACTIVATE = """
/* 1 / (1 + exp(-x)); exp(f) by its series after 2^k is split off. */
static inline V logistic(V x) {{
  const V limit = (V){{0}} + (T){limit}, minus = -x;
  I over = minus > limit, under = minus < -limit;
  V y = (V)((over & (I)limit) | (under & (I)(-limit)) | (~(over | under) & (I)minus));
  const V magic = (V){{0}} + (T){magic};
  const V shifted = y * (T){log2e} + magic, k = shifted - magic;
  const V f = (y - k * (T){ln2_high}) - k * (T){ln2_low};
  V p = (V){{0}} + (T){last};
  {series}
  const V power = (V)(((I)shifted << {mantissa}) + ({integer}){one});
  return (T)1 / ((T)1 + p * power);
}}
static void activate0(int64_t n, T gain, T *a) {{
  for (int64_t i = 0; i < n; i += {lanes}) {{
    V *h = (V *)(a + i);
    *h = gain * *h * logistic(*h);
  }}
}}
/* a: h -> silu(h); f: its derivative */
static void activate1(int64_t n, T gain, T *restrict a, T *restrict f) {{
  for (int64_t i = 0; i < n; i += {lanes}) {{
    const V h = *(V *)(a + i), s = logistic(h);
    *(V *)(a + i) = gain * h * s;
    *(V *)(f + i) = gain * (s + h * s * ((T)1 - s));
  }}
}}
/* also d: second derivative times the tangent; e: tangent of h -> tangent of a */
static void activate2(int64_t n, T gain, T *restrict a, T *restrict f, T *restrict d, T *restrict e) {{
  for (int64_t i = 0; i < n; i += {lanes}) {{
    const V h = *(V *)(a + i), s = logistic(h), slope = s * ((T)1 - s), tangent = *(V *)(e + i);
    const V first = gain * (s + h * slope);
    *(V *)(a + i) = gain * h * s;
    *(V *)(f + i) = first;
    *(V *)(d + i) = gain * slope * ((T)2 + h * ((T)1 - (T)2 * s)) * tangent;
    *(V *)(e + i) = first * tangent;
  }}
}}
static void scale(int64_t n, const T *restrict f, T *restrict b) {{
  for (int64_t i = 0; i < n; i += {lanes}) *(V *)(b + i) *= *(const V *)(f + i);
}}
/* c = c f + b d, b = b f */
static void cotangents(int64_t n, const T *restrict f, const T *restrict d, T *restrict b, T *restrict c, int has) {{
  for (int64_t i = 0; i < n; i += {lanes}) {{
    const V vb = *(V *)(b + i), vf = *(const V *)(f + i), own = vb * *(const V *)(d + i);
    if (has) *(V *)(c + i) = *(V *)(c + i) * vf + own; else *(V *)(c + i) = own;
    *(V *)(b + i) = vb * vf;
  }}
}}"""

_TILES = """
static T *allocate(int64_t n) {
  return (T *)aligned_alloc(64, ((n > 0 ? n : 1) * sizeof(T) + 63) / 64 * 64);
}
static void pack(const T *w, int64_t a, int64_t b, T factor, T *out, int64_t ld) {
  for (int64_t i = 0; i < a; i++)
    for (int64_t j = 0; j < ld; j++) out[i * ld + j] = j < b ? factor * w[i * b + j] : 0;
}
static void pack_transposed(const T *w, int64_t a, int64_t b, T factor, T *out, int64_t ld) {
  for (int64_t j = 0; j < b; j++)
    for (int64_t i = 0; i < ld; i++) out[j * ld + i] = i < a ? factor * w[i * b + j] : 0;
}
static void unpack(const T *d, int64_t ld, int64_t a, int64_t b, T factor, T *out) {
  for (int64_t i = 0; i < a; i++)
    for (int64_t j = 0; j < b; j++) out[i * b + j] = factor * d[i * ld + j];
}
static void load_part(const T *restrict from, int64_t distance, int64_t count, int64_t width,
    T *restrict to, int64_t ld) {
  for (int64_t i = 0; i < count; i++) memcpy(to + i * ld, from + i * distance, sizeof(T) * width);
  for (int64_t i = count; i < TILE; i++) memset(to + i * ld, 0, sizeof(T) * width);
}
static void load_rows(const T *restrict from, int64_t count, int64_t width, T *restrict to, int64_t ld) {
  for (int64_t i = 0; i < count; i++) memcpy(to + i * ld, from + i * width, sizeof(T) * width);
  for (int64_t i = count; i < TILE; i++) memset(to + i * ld, 0, sizeof(T) * width);
}
static void store_rows(const T *restrict from, int64_t ld, int64_t count, int64_t width, T *restrict to) {
  for (int64_t i = 0; i < count; i++) memcpy(to + i * width, from + i * ld, sizeof(T) * width);
}"""


def mlp_functions(target: Target, tile: int = 32) -> list[str]:
    """Sources of all of them for one machine; ``tile`` is the number of rows of a tile."""
    single = target.scalar == "float"
    degree = 7 if single else 13
    rows = 8 if target.registers >= 32 else 4
    high = 0.693145751953125 if single else 0.693147180369123816490
    series = "\n  ".join(f"p = p * f + (T){1 / math.factorial(n)!r};" for n in reversed(range(degree)))
    numbers = {
        "lanes": target.lanes,
        "limit": 80.0 if single else 700.0,
        "magic": "12582912.0" if single else "6755399441055744.0",
        "log2e": repr(1 / math.log(2)),
        "ln2_high": repr(high),
        "ln2_low": repr(math.log(2) - high if single else 1.90821492927058770002e-10),
        "last": repr(1 / math.factorial(degree)),
        "series": series,
        "mantissa": 23 if single else 52,
        "integer": "int32_t" if single else "int64_t",
        "one": "0x3f800000" if single else "0x3ff0000000000000",
    }
    integer = f"typedef {numbers['integer']} I __attribute__((vector_size({target.vector_bytes})));"
    return [
        f"#define TILE {tile}",
        f"typedef v{target.lanes} V;",
        integer,
        *(_BLOCK.format(width=width, rows=rows, lanes=target.lanes) for width in (1, 2, 3)),
        _PRODUCT.format(rows=rows, lanes=target.lanes),
        _ACTIVATE.format(**numbers),
        _TILES,
    ]
