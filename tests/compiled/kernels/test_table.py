"""A table is the piecewise polynomial of its knots, and its gradient the derivative of that."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pimlip_zoo.compiled.kernels.table import _BASIS, TableForm, cpu_table

pytestmark = pytest.mark.compiler
START, END = 0.3, 4.0


def knots(function, pairs, intervals):
    """(pairs, K + 1, 3, W) of ``function(lengths, pair) -> (K + 1, W)``, and the ranges, shorter pair by pair."""
    values, inverse = [], []
    for pair in range(pairs):
        step = (END - 0.2 * pair - START) / intervals
        r = START + step * torch.arange(intervals + 1, dtype=torch.float64)
        parts = [_nth(function, r, pair, n) for n in range(3)]
        values.append(torch.stack([parts[n] * step**n for n in range(3)], 1))
        inverse.append(1 / step)
    return torch.stack(values), torch.tensor([START, *inverse], dtype=torch.float64)


def _nth(function, r, pair, n):
    return function(r, pair) if n == 0 else _derivative(lambda x: _nth(function, x, pair, n - 1), r)


def _derivative(function, r):
    return torch.func.jvp(function, (r,), (torch.ones_like(r),))[1]


def hermite_weights(t):
    """(...,) places in an interval -> (..., 6) weights of value, first and second derivative at both ends."""
    powers = t.unsqueeze(-1) ** torch.arange(6, dtype=t.dtype)
    return powers @ torch.tensor(_BASIS, dtype=t.dtype).T


def reference(vectors, table, ends, pair):
    """The same by torch, differentiable."""
    r = vectors.norm(dim=1)
    inverse = ends[1:][pair]
    s = (r - ends[0]) * inverse
    last = table.shape[1] - 2
    i = s.detach().floor().clamp(0, last).long()
    inside = hermite_weights((s - i).clamp(max=1.0))
    line = torch.zeros_like(inside)
    line[:, 0], line[:, 1] = 1.0, s
    weights = torch.where((s < 0).unsqueeze(1), line, inside)
    return torch.einsum("ek,ekw->ew", weights, torch.cat([table[pair, i], table[pair, i + 1]], 1))


def edges(count, generator, low=0.1, high=4.5):
    direction = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    length = low + (high - low) * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return direction / direction.norm(dim=1, keepdim=True) * length


@settings(max_examples=12, deadline=None)
@given(
    width=st.sampled_from([1, 3, 16, 37]),
    intervals=st.sampled_from([1, 2, 9]),
    pairs=st.sampled_from([1, 4]),
    count=st.integers(0, 40),
    seed=st.integers(0, 2**31),
)
def test_values_and_gradients_are_those_of_the_piecewise_polynomial(width, intervals, pairs, count, seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(pairs, intervals + 1, 3, width, generator=generator, dtype=torch.float64)
    ends = torch.tensor(
        [START, *(intervals / (END - 0.2 * n - START) for n in range(pairs))], dtype=torch.float64
    )
    vectors = edges(count, generator).requires_grad_()
    pair = torch.randint(0, pairs, (count,), generator=generator)
    g = torch.randn(count, width, generator=generator, dtype=torch.float64)
    expected = reference(vectors, table, ends, pair)
    (slope,) = torch.autograd.grad(expected, vectors, g)
    op = cpu_table(TableForm(width, intervals, pairs > 1), torch.float64)
    arguments = (vectors.detach(), table, ends, None, pair.to(torch.int32) if pairs > 1 else None)
    torch.testing.assert_close(op.values(*arguments), expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(op.gradient(*arguments, g), slope, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_polynomials_of_degree_five_are_exact(dtype, limit):
    powers = torch.arange(6, dtype=torch.float64)
    table, ends = knots(lambda r, pair: (1 + pair) * (r.unsqueeze(1) / 4.0) ** powers, 3, 4)
    generator = torch.Generator().manual_seed(0)
    vectors = edges(50, generator, START, END - 0.5)
    pair = torch.randint(0, 3, (50,), generator=generator)
    expected = (1 + pair).unsqueeze(1) * (vectors.norm(dim=1, keepdim=True) / 4.0) ** powers
    op = cpu_table(TableForm(6, 4, True), dtype)
    found = op.values(vectors.to(dtype), table.to(dtype), ends.to(dtype), None, pair.to(torch.int32))
    torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=limit)


def test_only_the_named_edges_have_rows_and_gradients():
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(1, 6, 3, 5, generator=generator, dtype=torch.float64)
    ends = torch.tensor([START, 5 / (END - START)], dtype=torch.float64)
    vectors, first = edges(9, generator), torch.tensor([1, 4, 8])
    op = cpu_table(TableForm(5, 5, False), torch.float64)
    every = op.values(vectors, table, ends, None, None)
    torch.testing.assert_close(op.values(vectors, table, ends, first, None), every[first], rtol=0, atol=0)
    g = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    full = torch.zeros(9, 5, dtype=torch.float64)
    full[first] = g
    of_all = op.gradient(vectors, table, ends, None, None, full)
    torch.testing.assert_close(op.gradient(vectors, table, ends, first, None, g), of_all, rtol=0, atol=0)
    assert of_all[[0, 2, 3, 5, 6, 7]].abs().max() == 0


def test_beyond_the_last_knot_nothing_changes_and_nothing_is_felt():
    table = torch.randn(1, 4, 3, 2, dtype=torch.float64)
    ends = torch.tensor([START, 3 / (END - START)], dtype=torch.float64)
    op = cpu_table(TableForm(2, 3, False), torch.float64)
    vectors = torch.tensor([[0.0, 0.0, END + 0.4], [9.0, 0.0, 0.0]], dtype=torch.float64)
    found = op.values(vectors, table, ends, None, None)
    torch.testing.assert_close(found, table[0, -1, 0].expand(2, 2), rtol=0, atol=1e-15)
    gradient = op.gradient(vectors, table, ends, None, None, torch.ones(2, 2, dtype=torch.float64))
    assert gradient.abs().max() == 0
