"""C of the operations of torch that stand between kernels, loop by loop."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pimlip_zoo.compiled.native.program import Size, TensorOp, View
from pimlip_zoo.errors import InputError

C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.bool: "uint8_t",
}

_FORMULAS = {
    "add": "{0} + {alpha} * {1}",
    "sub": "{0} - {alpha} * {1}",
    "rsub": "{1} - {alpha} * {0}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "reciprocal": "1 / {0}",
    "pow": "F(pow)({0}, {1})",
    "square": "{0} * {0}",
    "sqrt": "F(sqrt)({0})",
    "rsqrt": "1 / F(sqrt)({0})",
    "exp": "F(exp)({0})",
    "log": "F(log)({0})",
    "log1p": "F(log1p)({0})",
    "sin": "F(sin)({0})",
    "cos": "F(cos)({0})",
    "tanh": "F(tanh)({0})",
    "erf": "F(erf)({0})",
    "abs": "F(fabs)({0})",
    "sgn": "({0} > 0) - ({0} < 0)",
    "sign": "({0} > 0) - ({0} < 0)",
    "sigmoid": "1 / (1 + F(exp)(-{0}))",
    "silu": "{0} / (1 + F(exp)(-{0}))",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "logical_not": "!{0}",
    "logical_and": "{0} && {1}",
    "logical_or": "{0} || {1}",
    "bitwise_and": "{0} & {1}",
    "bitwise_or": "{0} | {1}",
    "maximum": "{0} > {1} ? {0} : {1}",
    "minimum": "{0} < {1} ? {0} : {1}",
    "clamp_min": "{0} > {1} ? {0} : {1}",
    "clamp_max": "{0} < {1} ? {0} : {1}",
    "where": "{0} ? {1} : {2}",
    "masked_fill": "{1} ? {2} : {0}",
    "addcmul": "{0} + {value} * {1} * {2}",
    "clone": "{0}",
    "to_copy": "{0}",
    "copy": "{0}",
    "tanh_backward": "{0} * (1 - {1} * {1})",
    "sigmoid_backward": "{0} * {1} * (1 - {1})",
    "silu_backward": "{0} * (1 + {1} * (1 - 1 / (1 + F(exp)(-{1})))) / (1 + F(exp)(-{1}))",
}
"""Elementwise operations by their arguments; ``F(name)`` is the function of the precision at hand."""

_COMPARISONS = {"lt", "le", "gt", "ge", "eq", "ne", "logical_not", "logical_and", "logical_or"}
_FILLS = {"zeros": 0, "new_zeros": 0, "zeros_like": 0, "zero": 0, "ones": 1, "new_ones": 1, "ones_like": 1}
_FILLED = {"full": 1, "full_like": 1, "fill": 1, "new_full": 2, "scalar_tensor": 0}
"""Which argument has the value."""

Lines = list[str]


def pointer(view: View) -> str:
    """C of the address of a view's first element."""
    return f"b{view.buffer}" if view.offset == Size(0) else f"(b{view.buffer} + {view.offset.text})"


def tensor_lines(op: TensorOp) -> Lines:
    """C statements of one operation.

    Raises:
        InputError: for an operation that has no C.
    """
    if op.name in _FORMULAS:
        return _elementwise(op)
    if op.name in _FILLS:
        return _each(op.out, str(_FILLS[op.name]), [])
    if op.name in _FILLED:
        return _each(op.out, _number(op.args[_FILLED[op.name]]), [])
    if op.name in _OTHERS:
        return _OTHERS[op.name](op)
    raise InputError(
        f"the operation {op.name} of this model has no native form",
        key="format",
        hint="use --format torchscript or aot",
    )


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and not math.isfinite(value):
        return "NAN" if math.isnan(value) else "INFINITY" if value > 0 else "-INFINITY"
    return f"({value!r})"


def _index(view: View, names: Sequence[str]) -> str:
    """C of an element of a view by its indices, aligned to the right as broadcasting does."""
    parts = []
    names = names[len(names) - len(view.sizes) :]
    for size, stride, name in zip(view.sizes, view.strides, names, strict=True):
        if size != Size(1) and stride != Size(0) and name != "0":
            parts.append(name if stride == Size(1) else f"({stride.text}) * {name}")
    if view.offset != Size(0):
        parts.append(view.offset.text)
    return f"b{view.buffer}[{' + '.join(parts) or '0'}]"


def _product(sizes: Sequence[Size]) -> str:
    return " * ".join(f"({size.text})" for size in sizes if size != Size(1)) or "1"


def _names(view: View) -> list[str]:
    return ["0" if size == Size(1) else f"i{d}" for d, size in enumerate(view.sizes)]


def _nest(view: View, names: Sequence[str], body: Lines, *, parallel: bool = True) -> Lines:
    """Loops over the indices of a view around statements."""
    heads = [
        f"for (int64_t {name} = 0; {name} < {size.text}; {name}++)"
        for name, size in zip(names, view.sizes, strict=True)
        if name != "0"
    ]
    if heads and parallel:
        heads.insert(0, _PARALLEL.format(_product(view.sizes)))
    return [*heads, "{", *body, "}"]


_PARALLEL = "#pragma omp parallel for num_threads(threads) if(threads > 1 && {} > 65536) schedule(static)"


def _each(out: View, text: str, inputs: Sequence[View], *, cast: str = "") -> Lines:
    """``out[...] = text``, in which the names of inputs stand for their elements."""
    if out.contiguous and all(view.contiguous and view.sizes == out.sizes for view in inputs):
        filled = text.format(*(f"(({cast}){pointer(v)}[i])" for v in inputs))
        size = _product(out.sizes)
        return [
            _PARALLEL.format(size),
            f"for (int64_t i = 0; i < {size}; i++) {pointer(out)}[i] = {filled};",
        ]
    names = _names(out)
    filled = text.format(*(f"(({cast}){_index(v, names)})" for v in inputs))
    return _nest(out, names, [f"{_index(out, names)} = {filled};"])


def _elementwise(op: TensorOp) -> Lines:
    if op.kwargs.get("rounding_mode") is not None:
        raise InputError("rounded division has no native form", key="format")
    kind = _common(op.args) if op.name in _COMPARISONS else op.out.dtype
    # The first argument of copy is where it goes.
    arguments = [a for a in op.args if isinstance(a, (View, int, float))][1 if op.name == "copy" else 0 :]
    views = [a for a in arguments if isinstance(a, View)]
    numbers = iter(range(len(views)))
    parts = [
        f"{{{next(numbers)}}}" if isinstance(a, View) else f"(({C_TYPES[kind]}){_number(a)})"
        for a in arguments
    ]
    formula = _FORMULAS[op.name]
    if op.name == "pow" and not isinstance(op.args[1], View):
        formula = _power(op.args[1])
    factors = {name: _number(op.kwargs.get(name, 1)) for name in ("alpha", "value")}
    suffix = "f" if kind == torch.float32 else ""
    text = re.sub(r"F\((\w+)\)", rf"\g<1>{suffix}", formula.format(*parts, **factors))
    return _each(op.out, text, views, cast=C_TYPES[kind])


def _power(exponent: float) -> str:
    """Small whole powers as products."""
    if exponent == int(exponent) and 1 <= exponent <= 3:
        return " * ".join(["{0}"] * int(exponent))
    return "F(pow)({0}, {1})"


def _common(args: Sequence[Any]) -> torch.dtype:
    kinds = [a.dtype for a in args if isinstance(a, View)]
    kind = kinds[0]
    for other in kinds[1:]:
        kind = torch.promote_types(kind, other)
    if kind.is_floating_point or not any(isinstance(a, float) for a in args):
        return torch.int32 if kind == torch.bool else kind
    return torch.get_default_dtype()


def _arange(op: TensorOp) -> Lines:
    start, step = (op.args[0], op.args[2] if len(op.args) > 2 else 1) if len(op.args) > 1 else (0, 1)
    name = "i0"
    return _nest(op.out, [name], [f"{_index(op.out, [name])} = {_number(start)} + {_number(step)} * {name};"])


def _part(view: View, dim: int, start: Size, size: Size) -> View:
    """A slice along one dimension."""
    sizes = tuple(size if d == dim else s for d, s in enumerate(view.sizes))
    return View(
        view.buffer, view.dtype, sizes, view.strides, _sum(view.offset, _times(start, view.strides[dim]))
    )


def _chosen(view: View, dim: int, index: int) -> View:
    """One index along one dimension."""
    keep = [d for d in range(len(view.sizes)) if d != dim]
    offset = _sum(view.offset, _times(Size(index), view.strides[dim]))
    return View(
        view.buffer,
        view.dtype,
        tuple(view.sizes[d] for d in keep),
        tuple(view.strides[d] for d in keep),
        offset,
    )


def _sum(a: Size, b: Size) -> Size:
    return Size(*(x + y for x, y in zip(a, b, strict=True)))


def _times(a: Size, b: Size) -> Size:
    if a.fixed:
        return Size(*(a.constant * part for part in b))
    if b.fixed:
        return Size(*(b.constant * part for part in a))
    raise InputError("a size is a product of atoms and edges", key="format")


def _copy(target: View, source: View) -> Lines:
    return _each(target, "{0}", [source], cast=C_TYPES[target.dtype])


def _cat(op: TensorOp) -> Lines:
    dim = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % len(op.out.sizes)
    lines, start = [], Size(0)
    for view in op.args[0]:
        if view.sizes == (Size(0),):
            continue
        lines += _copy(_part(op.out, dim, start, view.sizes[dim]), view)
        start = _sum(start, view.sizes[dim])
    return lines


def _stack(op: TensorOp) -> Lines:
    dim = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % len(op.out.sizes)
    return [line for n, view in enumerate(op.args[0]) for line in _copy(_chosen(op.out, dim, n), view)]


def _slice_backward(op: TensorOp) -> Lines:
    grad, _, dim, start, _, step = op.args
    if step != 1 or not isinstance(start, int) or start < 0:
        raise InputError("a slice with steps has no native form", key="format")
    dim %= len(op.out.sizes)
    return [*_each(op.out, "0", []), *_copy(_part(op.out, dim, Size(start), grad.sizes[dim]), grad)]


def _select_backward(op: TensorOp) -> Lines:
    grad, _, dim, index = op.args
    dim %= len(op.out.sizes)
    if index < 0:
        index += op.out.sizes[dim].constant
    return [*_each(op.out, "0", []), *_copy(_chosen(op.out, dim, index), grad)]


def _rows(indices: Any) -> tuple[int, View]:
    """The one tensor of an index, and its place."""
    found = [(place, index) for place, index in enumerate(indices) if index is not None]
    if len(found) != 1 or found[0][1].dtype not in (torch.int64, torch.int32):
        raise InputError("an index of several tensors or of a mask has no native form", key="format")
    return found[0]


def _gathered(view: View, place: int, index: View, names: Sequence[str]) -> str:
    """C of ``view[..., index, ...]``: ``names`` are the indices of the result."""
    count = len(index.sizes)
    row = f"(int64_t){_index(index, names[place : place + count])}"
    outer = [*names[:place], row, *names[place + count :]]
    return _index(view, outer)


def _gather(op: TensorOp) -> Lines:
    if op.name == "index":
        view, (place, index) = op.args[0], _rows(op.args[1])
    elif op.name == "embedding":
        view, place, index = op.args[0], 0, op.args[1]
    else:
        view, place, index = op.args
    names = _names(op.out)
    return _nest(op.out, names, [f"{_index(op.out, names)} = {_gathered(view, place, index, names)};"])


def _index_put(op: TensorOp) -> Lines:
    view, (place, index), values = op.args[0], _rows(op.args[1]), op.args[2]
    accumulate = op.args[3] if len(op.args) > 3 else op.kwargs.get("accumulate", False)
    lines = [] if op.out.buffer == view.buffer else _copy(op.out, view)
    sizes = (*view.sizes[:place], *index.sizes, *view.sizes[place + 1 :])
    over = View(values.buffer, values.dtype, sizes, (Size(0),) * len(sizes), Size(0))
    names, sign = _names(over), "+=" if accumulate else "="
    target = _gathered(op.out, place, index, names)
    return [*lines, *_nest(over, names, [f"{target} {sign} {_index(values, names)};"], parallel=False)]


def _index_add(op: TensorOp) -> Lines:
    view, dim, index, source = op.args[:4]
    lines = [] if op.out.buffer == view.buffer else _copy(op.out, view)
    dim %= len(view.sizes)
    names = _names(source)
    factor = op.kwargs.get("alpha", 1)
    target = _gathered(op.out, dim, index, names)
    text = f"{target} += {'' if factor == 1 else _number(factor) + ' * '}{_index(source, names)};"
    return [*lines, *_nest(source, names, [text], parallel=False)]


def _index_copy(op: TensorOp) -> Lines:
    view, dim, index, source = op.args[:4]
    lines = [] if op.out.buffer == view.buffer else _copy(op.out, view)
    names = _names(source)
    target = _gathered(op.out, dim % len(view.sizes), index, names)
    return [*lines, *_nest(source, names, [f"{target} = {_index(source, names)};"])]


def _reduce(op: TensorOp) -> Lines:
    """Sums, and lengths of vectors."""
    view = op.args[0]
    norm = op.name == "linalg_vector_norm"
    place = 2 if norm else 1
    dims = op.args[place] if len(op.args) > place else op.kwargs.get("dim")
    keep = op.args[place + 1] if len(op.args) > place + 1 else op.kwargs.get("keepdim", False)
    if norm and len(op.args) > 1 and op.args[1] != 2:
        raise InputError("this norm has no native form", key="format")
    count = len(view.sizes)
    reduced = {d % count for d in (dims or range(count))} if count else set()
    names = _names(view)
    left = [("0" if d in reduced else name) for d, name in enumerate(names) if keep or d not in reduced]
    element, target = _index(view, names), _index(op.out, left)
    term = f"{element} * {element}" if norm else element
    lines = _each(op.out, "0", [])
    lines += _nest(view, names, [f"{target} += {term};"], parallel=False)
    if norm:
        root = "sqrtf" if op.out.dtype == torch.float32 else "sqrt"
        lines += _each(op.out, f"{root}({{0}})", [op.out], cast=C_TYPES[op.out.dtype])
    return lines


def _matmul(op: TensorOp) -> Lines:
    a, b = op.args[:2]
    batch = ["i0"] if len(op.out.sizes) == 3 else []
    i, j = "i1", "i2"
    inner = a.sizes[-1].text
    target = _index(op.out, [*batch, i, j])
    loops = [f"for (int64_t i0 = 0; i0 < {op.out.sizes[0].text}; i0++)"] if batch else []
    head = _PARALLEL.format(f"{_product(op.out.sizes)} * ({inner})")
    return [
        *_each(op.out, "0", []),
        head,
        *loops,
        f"for (int64_t i1 = 0; i1 < {op.out.sizes[-2].text}; i1++)",
        f"for (int64_t k = 0; k < {inner}; k++)",
        f"for (int64_t i2 = 0; i2 < {op.out.sizes[-1].text}; i2++)",
        f"{target} += {_index(a, [*batch, i, 'k'])} * {_index(b, [*batch, 'k', j])};",
    ]


_OTHERS: dict[str, Callable[[TensorOp], Lines]] = {
    "arange": _arange,
    "cat": _cat,
    "stack": _stack,
    "slice_backward": _slice_backward,
    "select_backward": _select_backward,
    "index": _gather,
    "index_select": _gather,
    "embedding": _gather,
    "index_put": _index_put,
    "unsafe_index_put": _index_put,
    "index_put_impl": _index_put,
    "index_add": _index_add,
    "index_copy": _index_copy,
    "sum": _reduce,
    "linalg_vector_norm": _reduce,
    "mm": _matmul,
    "bmm": _matmul,
}
