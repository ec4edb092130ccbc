"""Species-dependent maps: few species and many go different ways to the same result."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3

from pimlip_zoo.nn.linear import SpeciesLinear


@pytest.mark.parametrize("rows", [0, 1, 9])
@pytest.mark.parametrize(("species", "channels"), [(2, 12), (2, 2), (40, 4)])
def test_each_row_is_mapped_by_the_matrix_of_its_species(species: int, channels: int, rows: int) -> None:
    torch.manual_seed(0)
    irreps = o3.Irreps("0e + 1o + 2e")
    layer = SpeciesLinear(irreps, irreps, channels, 5, species).double()
    one_hot = torch.eye(species, dtype=torch.float64)
    x = torch.randn(rows, 9, channels, dtype=torch.float64, requires_grad=True)
    of_row = torch.arange(rows) * 7 % species
    result = layer(x, one_hot, of_row)
    expected = torch.zeros(rows, 9, 5, dtype=torch.float64)
    for row in range(rows):
        for weight, part in zip(layer.weights, irreps.slices(), strict=True):
            matrix = weight[:, of_row[row]] / (channels * species) ** 0.5
            expected[row, part] = x[row, part] @ matrix
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.jit.script(layer)(x, one_hot, of_row), result)
    if rows:
        assert torch.autograd.gradgradcheck(lambda x: layer(x, one_hot, of_row), (x,), fast_mode=True)


@pytest.mark.parametrize("species", [3, 70])
def test_many_rows_are_mapped_as_few_are(species: int) -> None:
    torch.manual_seed(0)
    irreps = o3.Irreps("0e + 1o")
    layer = SpeciesLinear(irreps, irreps, 64, 32, species).double()
    one_hot = torch.eye(species, dtype=torch.float64)
    rows = 6000
    of_row = torch.randint(0, species, (rows,))
    of_row[of_row == 1] = 0  # a species without an atom

    def results(pieces: int, layer: torch.nn.Module = layer) -> list[torch.Tensor]:
        """Output, gradient and the gradient of the gradient, the rows taken in pieces."""
        x = torch.linspace(-1, 1, rows * 4 * 64, dtype=torch.float64).view(rows, 4, 64).requires_grad_()
        size = rows // pieces
        parts = [layer(x[i : i + size], one_hot, of_row[i : i + size]) for i in range(0, rows, size)]
        output = torch.cat(parts)
        (gradient,) = torch.autograd.grad(output.pow(3).sum(), x, create_graph=True)
        return [output, gradient, *torch.autograd.grad(gradient.square().sum(), [x, *layer.parameters()])]

    few = results(60)
    for scripted in (layer, torch.jit.script(layer)):
        for value, expected in zip(results(1, scripted), few, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def test_no_row_gets_a_matrix_of_its_own_where_rows_are_many() -> None:
    layer = SpeciesLinear(o3.Irreps("1o"), o3.Irreps("1o"), 64, 64, 40)
    x = torch.zeros(2000, 3, 64, requires_grad=True)
    sizes: list[int] = []

    def remember(saved: torch.Tensor) -> torch.Tensor:
        sizes.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda saved: saved):
        layer(x, torch.eye(40), torch.arange(2000) % 40)
    assert max(sizes) <= x.numel()
