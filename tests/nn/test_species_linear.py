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
