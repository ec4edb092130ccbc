"""Copies are taken out of a program only where nobody can tell."""

import itertools

import pytest
import torch

from pimlip_zoo.compiled.kernels.mlp import MLPForm, MLPSweep, cpu_mlp
from pimlip_zoo.compiled.native.fuse import without_copies
from pimlip_zoo.compiled.native.program import KernelOp, Program, Size, TensorOp, View

pytestmark = pytest.mark.compiler

EDGES = Size(0, 0, 1)
OUT = 99


def view(buffer, width, *, row=None, offset=0):
    """(E, width) with rows so far apart."""
    return View(buffer, torch.float32, (EDGES, Size(width)), (Size(row or width), Size(1)), Size(offset))


def program(*operations, inputs=()):
    buffers = {v.buffer: Size(0, 0, 4 * 64) for op in operations for v in Program.views(op)}
    outputs = {"energy": view(OUT, 4)}
    return Program(torch.float32, list(operations), buffers, {}, {str(v.buffer): v for v in inputs}, outputs)


def op(name, out, *args):
    return TensorOp(name, args, {}, out)


def names(result):
    return [each.name if isinstance(each, TensorOp) else "kernel" for each in result.operations]


def added(first, second, *between):
    """Two columns that are added to zeros of five, read by the output."""
    whole = view(1, 5)
    parts = [op("add", part, part, view(n, part.sizes[1].constant)) for n, part in ((2, first), (3, second))]
    return program(
        op("sin", view(2, first.sizes[1].constant), view(7, first.sizes[1].constant)),
        op("zeros", whole, (EDGES, 5)),
        parts[0],
        *between,
        parts[1],
        op("exp", view(OUT, 4), view(1, 4, row=5)),
        inputs=(view(7, 3), view(3, 2)),
    )


@pytest.mark.parametrize("order", [0, 1])
def test_columns_that_are_added_to_zeros_are_joined(order):
    columns = [view(1, 3, row=5), view(1, 2, row=5, offset=3)]
    found = without_copies(added(*(columns if order == 0 else columns[::-1])))
    assert names(found) == ["sin", "cat", "exp"]
    widths = [part.sizes[1].constant for part in found.operations[1].args[0]]
    assert widths == [3, 2]


@pytest.mark.parametrize(
    ("first", "second", "between"),
    [
        (view(1, 3, row=5), view(1, 2, row=5, offset=2), ()),  # they overlap
        (view(1, 2, row=5), view(1, 2, row=5, offset=3), ()),  # a column stays zero
        (
            view(1, 3, row=5),
            view(1, 2, row=5, offset=3),
            (op("exp", view(OUT, 4), view(1, 4, row=5)),),
        ),  # is read
        (
            view(1, 3, row=5),
            view(1, 2, row=5, offset=3),
            (op("zeros", view(2, 3), (EDGES, 3)),),
        ),  # what was added changes
    ],
)
def test_sums_that_are_no_joins_stay(first, second, between):
    assert "cat" not in names(without_copies(added(first, second, *between)))


def test_an_array_that_is_not_used_again_becomes_its_copy():
    steps = (
        op("sin", view(1, 4), view(7, 4)),
        op("clone", view(2, 4), view(1, 4)),
        op("add", view(2, 2, row=4), view(2, 2, row=4), view(7, 2, row=4)),
        op("exp", view(OUT, 4), view(2, 4)),
    )
    found = without_copies(program(*steps, inputs=(view(7, 4),)))
    assert names(found) == ["sin", "add", "exp"]
    assert {v.buffer for each in found.operations for v in Program.views(each)} == {1, 7, OUT}


def test_an_array_that_is_used_again_is_copied():
    steps = (
        op("sin", view(1, 4), view(7, 4)),
        op("clone", view(2, 4), view(1, 4)),
        op("add", view(2, 2, row=4), view(2, 2, row=4), view(7, 2, row=4)),
        op("mul", view(OUT, 4), view(2, 4), view(1, 4)),
    )
    assert names(without_copies(program(*steps, inputs=(view(7, 4),)))) == ["sin", "clone", "add", "mul"]


def test_an_input_is_copied():
    steps = (op("clone", view(2, 4), view(7, 4)), op("exp", view(OUT, 4), view(2, 4)))
    assert names(without_copies(program(*steps, inputs=(view(7, 4),)))) == ["clone", "exp"]


def test_the_same_is_computed_once_unless_something_changed():
    same = op("sin", view(1, 4), view(7, 4)), op("sin", view(2, 4), view(7, 4))
    last = op("mul", view(OUT, 4), view(1, 4), view(2, 4))
    found = without_copies(program(*same, last, inputs=(view(7, 4),)))
    assert names(found) == ["sin", "mul"]
    assert found.operations[1].args == (view(1, 4), view(1, 4))
    changed = op("add", view(7, 4), view(7, 4), view(7, 4))
    assert names(without_copies(program(same[0], changed, same[1], last))) == ["sin", "add", "sin", "mul"]


def test_what_nothing_reads_is_not_computed():
    steps = (op("sin", view(1, 4), view(7, 4)), op("exp", view(OUT, 4), view(7, 4)))
    assert names(without_copies(program(*steps, inputs=(view(7, 4),)))) == ["exp"]


def kernel(sizes, sweep, **operands):
    places = ("first", "row", "slot", "x0", "x1", "y0", "y1", "w0", "w1", "g0", "g1", "out0", "out1", "out2")
    library = cpu_mlp(MLPForm(sizes, (1.0,) * (len(sizes) - 1), 1.0), torch.float32)
    return KernelOp(library, sweep, EDGES, None, tuple(operands.get(name) for name in places))


def test_perceptrons_read_what_was_joined_where_it_is():
    inner = op("cat", view(1, 7), (view(11, 3), view(12, 4, row=9, offset=2)), 1)
    outer = op("cat", view(2, 9), (view(1, 7), view(13, 2)), 1)
    run = kernel((9, 4), MLPSweep(0), x0=view(2, 9), w0=view(14, 36), out0=view(OUT, 4))
    inputs = [view(n, 9) for n in (11, 12, 13, 14)]
    found = without_copies(program(inner, outer, run, inputs=inputs))
    assert names(found) == ["kernel"]
    assert found.operations[0].kernel.pieces == ((3, 3), (4, 9), (2, 2))
    assert [v.buffer for v in found.operations[0].views if v is not None] == [11, 12, 13, 14, OUT]


def test_what_changed_after_it_was_joined_is_read_from_the_copy():
    join = op("cat", view(2, 9), (view(11, 7), view(13, 2)), 1)
    change = op("zeros", view(11, 7), (EDGES, 7))
    run = kernel((9, 4), MLPSweep(0), x0=view(2, 9), w0=view(14, 36), out0=view(OUT, 4))
    result = without_copies(program(join, change, run, inputs=[view(n, 9) for n in (13, 14)]))
    assert not result.operations[-1].kernel.pieces
    assert names(result)[0] == "cat"


def test_more_pieces_than_a_kernel_takes_are_joined():
    parts = tuple(view(20 + n, 1, row=2) for n in range(5))
    join = op("cat", view(2, 5), parts, 1)
    run = kernel((5, 4), MLPSweep(0), x0=view(2, 5), w0=view(14, 20), out0=view(OUT, 4))
    result = without_copies(program(join, run, inputs=[view(n, 2) for n in range(20, 25)]))
    assert names(result) == ["cat", "kernel"]


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 45])
def test_pieces_are_what_they_are_pieces_of(rows, keeps):
    form = MLPForm((9, 5, 3), (0.5, 0.7), 1.3)
    op_ = cpu_mlp(form, torch.float64)
    flat = torch.randn(form.offsets[-1], dtype=torch.float64)
    wide = [torch.randn(rows, 11, dtype=torch.float64) for _ in range(3)]
    cuts = list(itertools.pairwise((0, 2, 5, 9)))
    parts = [w[:, a : a + b - a] for w, (a, b) in zip(wide, cuts, strict=True)]
    x = torch.cat(parts, 1)
    expected, kept, _ = op_.run(MLPSweep(0, keeps=keeps), x, flat)
    sweep = MLPSweep(0, keeps=keeps, pieces=tuple((b - a, 11) for a, b in cuts))
    out, slopes = torch.empty(rows, 3, dtype=torch.float64), torch.empty(rows * 5, dtype=torch.float64)
    # The kernel reads rows from where the first begins, which a view does not show to the library.
    op_.prepare(sweep)
    function = op_._functions[sweep]
    addresses = [part.data_ptr() for part in parts] + [None] * (4 - len(parts))
    function(
        rows,
        1,
        None,
        None,
        None,
        *addresses,
        flat.data_ptr(),
        None,
        None,
        None,
        out.data_ptr(),
        slopes.data_ptr(),
        None,
    )
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    if keeps:
        torch.testing.assert_close(slopes, kept, rtol=0, atol=0)
