"""One C file for a whole model: the kernels that it calls, and the function that calls them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from pimlip_zoo.compiled.kernels.generate import Target
from pimlip_zoo.compiled.kernels.linear import TILE
from pimlip_zoo.compiled.kernels.unit import Unit
from pimlip_zoo.compiled.native.matrices import is_product, product_call, product_source
from pimlip_zoo.compiled.native.memory import Plan, plan_memory
from pimlip_zoo.compiled.native.program import KernelOp, ListsOp, Operation, Program, Size, TensorOp, View
from pimlip_zoo.compiled.native.tensors import C_TYPES, pointer, tensor_lines

ALIGNMENT = 64
"""Bytes, of every constant and every piece of memory."""

_SMALL = 1 << 16  # as in KernelLibrary: less work than this is not worth threads
_LIST_TYPES = {"first": "int64_t", "first_c": "int64_t", "first_n": "int64_t", "both": "int64_t"}


def constant_offsets(program: Program) -> tuple[dict[int, int], int]:
    """Where each constant begins among the weights' bytes, and their number."""
    offsets, end = {}, 0
    for number, value in sorted(program.constants.items()):
        offsets[number] = end
        end += -(-value.numel() * value.element_size() // ALIGNMENT) * ALIGNMENT
    return offsets, end


def weights_bytes(program: Program) -> bytes:
    """All constants one after the other."""
    offsets, total = constant_offsets(program)
    out = bytearray(total)
    for number, value in program.constants.items():
        content = value.contiguous().numpy().tobytes()
        out[offsets[number] : offsets[number] + len(content)] = content
    return bytes(out)


def model_source(program: Program, vector_bytes: int, registers: int) -> str:
    """C of a program, kernels written for vectors of this many bytes.

    Raises:
        InputError: for an operation that has no C.
    """
    scalar = "float" if program.dtype.itemsize == 4 else "double"
    kernels = _Kernels(Target(scalar, vector_bytes, registers), program.dtype)
    body = [line for op in program.operations for line in _lines(op, kernels)]
    plan = plan_memory(program)
    runtime = (Path(__file__).parent / "runtime.c").read_text()
    before, after = runtime.split("/* model */")
    return "\n".join([before, *kernels.unit.items, *_driver(program, plan, body), after])


class _Kernels:
    """The kernels that a program calls."""

    def __init__(self, machine: Target, dtype: torch.dtype) -> None:
        self.machine, self.dtype = machine, dtype
        self.unit = Unit("static __attribute__((noinline))")
        self._names: dict[tuple[int, object], str] = {}
        self._product = ""

    def name(self, op: KernelOp) -> str:
        """The function of a kernel, its source added when it is first asked for."""
        key = (id(op.library), op.kernel)
        if key not in self._names:
            self._names[key] = f"kernel{len(self._names)}"
            self.unit.add(op.library.source(op.kernel, self.machine), self._names[key])
        return self._names[key]

    def product(self) -> str:
        """The function of products of matrices, likewise."""
        if not self._product:
            self._product = "native_product"
            self.unit.add(product_source(self.machine), self._product)
        return self._product


def _lines(op: Operation, kernels: _Kernels) -> list[str]:
    if isinstance(op, KernelOp):
        rows = f"tiles{op.rows}" if isinstance(op.rows, int) else op.rows.text
        threads = "threads" if op.work is None else f"({op.work.text}) > {_SMALL} ? threads : 1"
        views = ", ".join("0" if v is None else f"(void *){pointer(v)}" for v in op.views)
        return [f"{kernels.name(op)}({rows}, {threads}, {views});"]
    if isinstance(op, ListsOp):
        return _lists(op)
    if isinstance(op, TensorOp) and is_product(op, kernels.dtype):
        return [product_call(op, kernels.product(), _SMALL)]
    return tensor_lines(op)


def _pointers(views: Mapping[str, View], *names: str) -> str:
    """C of the addresses of lists, null where there is none of that name."""
    return ", ".join(f"b{views[name].buffer}" if name in views else "0" for name in names)


def _lists(op: ListsOp) -> list[str]:
    if op.kind == "pairs":
        made = _pointers(op.out, "of_edge", "both", "slot_c", "slot_n")
        given = _pointers(op.given, "first_c", "slot_n")
        return [
            f"const int64_t pairs = native_edge_pairs(atoms, edges, edge_index, vectors, {given}, {made});"
        ]
    if op.kind == "edges":
        assert op.source is not None
        out = _pointers(op.out, "centre", "neighbour", "first_c", "first_n", "row_n", "slot_n")
        stride = op.source.strides[0].text
        sizes = f"{op.rows.text}, {op.source.sizes[-1].text}"
        return [f"native_edge_lists({sizes}, {pointer(op.source)}, {pointer(op.source)} + {stride}, {out});"]
    out = _pointers(op.out, "first", "order", "species")
    source = "0" if op.source is None else pointer(op.source)
    return [
        f"const int64_t tiles{op.number} = native_row_tiles({op.rows.text}, NUM_SPECIES, {TILE}, {source}, {out});"
    ]


def _driver(program: Program, plan: Plan, body: list[str]) -> list[str]:
    offsets, total = constant_offsets(program)
    types = _types(program)
    lines = [
        f"#define NUM_SPECIES {program.num_species}",
        f"const int64_t pimlip_weight_bytes = {total};",
        "int64_t pimlip_workspace(int64_t atoms, int64_t edges) {",
        f"int64_t bytes = {ALIGNMENT};",
        *(f"bytes += native_aligned({size.text});" for size in plan.pieces),
        "return bytes; }",
        "static void native_model(const char *weights, char *memory, int64_t atoms, int64_t edges, int64_t threads,",
        "    const double *vectors, const int64_t *edge_index, const int64_t *species, const double *is_local,",
        "    double *energy, double *gradient) {",
        f"memory = (char *)(((uintptr_t)memory + {ALIGNMENT - 1}) / {ALIGNMENT} * {ALIGNMENT});",
    ]
    for number, size in enumerate(plan.pieces):
        lines.append(f"char *piece{number} = memory; memory += native_aligned({size.text});")
    used = {view.buffer for op in program.operations for view in program.views(op)}
    used |= {view.buffer for view in program.outputs.values()}
    for name, view in program.inputs.items():
        if view.buffer in used:
            lines.append(f"const {C_TYPES[view.dtype]} *b{view.buffer} = {name};")
    for number in sorted(used & program.constants.keys()):
        kind = C_TYPES[program.constants[number].dtype]
        lines.append(f"const {kind} *b{number} = (const {kind} *)(weights + {offsets[number]});")
    for number, piece in plan.place.items():
        lines.append(f"{types[number]} *b{number} = ({types[number]} *)piece{piece};")
    lines += body
    for name, view in program.outputs.items():
        lines += _output(name, view)
    return [*lines, "}"]


def _types(program: Program) -> dict[int, str]:
    types: dict[int, str] = {}
    for op in program.operations:
        if isinstance(op, ListsOp):
            types.update({v.buffer: _LIST_TYPES.get(name, "int32_t") for name, v in op.out.items()})
    for op in program.operations:
        for view in program.views(op):
            types.setdefault(view.buffer, C_TYPES[view.dtype])
    return types


def _output(name: str, view: View) -> list[str]:
    columns = view.sizes[1] if len(view.sizes) > 1 else Size(1)
    stride = view.strides[1].text if len(view.sizes) > 1 else "0"
    return [
        f"for (int64_t i = 0; i < {view.sizes[0].text}; i++) for (int64_t j = 0; j < {columns.text}; j++)",
        f"{name}[i * ({columns.text}) + j] = {pointer(view)}[i * ({view.strides[0].text}) + j * ({stride})];",
    ]
