"""The optimiser Muon: what it moves how, and that its state can be saved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pimlip_zoo.registry import available_models
from pimlip_zoo.training.muon import Muon, linear_maps, orthogonalised


@pytest.mark.parametrize("shape", [(4, 4), (8, 64), (32, 320), (5, 7)])
def test_singular_values_become_nearly_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = orthogonalised(matrix, iterations=8)
    singular = torch.linalg.svdvals(result)
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    # The singular vectors stay: the product with the transpose is symmetric and positive.
    product = result @ matrix.mT
    torch.testing.assert_close(product, product.mT, rtol=1e-9, atol=1e-9)
    assert torch.linalg.eigvalsh(product).min() > 0


def parameters() -> list[nn.Parameter]:
    """Wide, tall, square, by species, a vector, and one without a gradient."""
    torch.manual_seed(1)
    shapes = [(8, 16), (16, 8), (8, 8), (8, 3, 16), (16, 3, 8), (7,), (8, 8)]
    made = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    for parameter in made[:-1]:
        parameter.grad = torch.randn_like(parameter)
    return made


def test_matrices_take_orthogonal_steps_of_the_size_of_the_learning_rate() -> None:
    given = parameters()
    before = [p.detach().clone() for p in given]
    Muon(given, dict.fromkeys(given[:5] + given[6:], -1), lr=0.01, weight_decay=0.0).step()
    for parameter, old in zip(given[:5], before, strict=False):
        step = parameter.detach() - old
        by_species = step.transpose(0, 1) if step.dim() == 3 else step.unsqueeze(0)
        gradient = parameter.grad.transpose(0, 1) if step.dim() == 3 else parameter.grad.unsqueeze(0)
        for one, downhill in zip(by_species, -gradient, strict=True):
            assert 0.006 < one.square().mean().sqrt() < 0.013
            left, _, right = torch.linalg.svd(downhill, full_matrices=False)
            along = left.mT @ one @ right.mT
            torch.testing.assert_close(along, torch.diag(along.diagonal()), rtol=0, atol=1e-4 * 0.16)
            assert along.diagonal().min() > 0
    assert torch.equal(given[6], before[6])


def test_all_else_moves_as_with_adamw() -> None:
    ours, theirs = parameters(), parameters()
    optimizer = Muon(ours, dict.fromkeys(ours[:5], -1), lr=0.01, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs[5:], lr=0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.step()
        reference.step()
    assert torch.equal(ours[5], theirs[5])
    assert all(p.grad is not None for p in ours[:6])  # as they were, for whoever looks at them


@pytest.mark.parametrize("equal_outputs", [False, True])
def test_a_saved_state_goes_on_exactly(equal_outputs: bool) -> None:
    first = parameters()
    optimizer = Muon(first, dict.fromkeys(first[:5], -1), lr=0.01, equal_outputs=equal_outputs)
    optimizer.step()
    second = [nn.Parameter(p.detach().clone()) for p in first]
    for copied, original in zip(second, first, strict=True):
        copied.grad = original.grad
    resumed = Muon(second, dict.fromkeys(second[:5], -1), lr=0.01, equal_outputs=equal_outputs)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["nequip", "allegro", "mace"])
def test_embeddings_and_coefficients_of_products_are_no_matrices(name: str) -> None:
    info = available_models()[name]
    model = info.model(info.configure("small", avg_num_neighbors=10.0), ("H", "C", "N", "O", "F"))
    chosen = {id(p) for p in linear_maps(model)}
    names = {n for n, p in model.named_parameters() if id(p) in chosen}
    assert not [n for n in names if "embedding" in n.split(".")[0] and "radial" not in n]
    assert not [n for n in names if "contraction" in n]
    matrices = sum(p.numel() for p in model.parameters() if id(p) in chosen)
    assert matrices > 0.7 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-30, 1e-24, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_rounding_alone_move_nothing_far(size, dtype):
    """Squares of 1e-24 are zero in float32; perfect crystals have such gradients in their first steps."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(8, 6, dtype=dtype))
    weight.grad = size * torch.randn(8, 6, dtype=dtype)
    Muon([weight], {weight: -1}, lr=1.0).step()
    assert torch.isfinite(weight).all()
    assert weight.abs().max() < 0.5 if size > 1e-20 else weight.abs().max() < 1e-9


@pytest.mark.parametrize("shape", [(6, 12), (8, 8), (6, 3, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_that_move_less_than_others_are_given_steps_of_one_size(shape, dtype):
    """One has small gradients; the polar factor of a matrix with more outputs than inputs leaves its step small."""
    torch.manual_seed(0)
    spread = {}
    for equal_outputs in (False, True):
        weight = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
        weight.grad = torch.randn(shape, dtype=dtype)
        weight.grad[..., 0] *= 0.01
        optimizer = Muon([weight], {weight: -1}, lr=1.0, weight_decay=0.0, equal_outputs=equal_outputs)
        optimizer.step()
        sizes = weight.detach().square().mean(dim=0).sqrt()  # ([species,] outputs)
        spread[equal_outputs] = (sizes.amax(-1) / sizes.amin(-1)).max()
        assert 0.6 < weight.detach().square().mean().sqrt() < 1.3  # as a whole it keeps its size
    assert spread[True] < 1.15
    assert spread[False] > 1.3


def test_outputs_of_a_linear_layer_of_torch_lie_along_its_first_axis():
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 12, bias=False)
    assert linear_maps(layer) == {layer.weight: 0}
    mine = torch.nn.Parameter(layer.weight.detach().T.clone())
    layer.weight.grad = torch.randn(12, 6)
    mine.grad = layer.weight.grad.T.clone()
    Muon([layer.weight], linear_maps(layer), lr=1.0, equal_outputs=True).step()
    Muon([mine], {mine: -1}, lr=1.0, equal_outputs=True).step()
    torch.testing.assert_close(layer.weight.detach().T, mine.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_that_symmetry_keeps_at_zero_stay_there(dtype):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(8, 6, dtype=dtype))
    optimizer = Muon([weight], {weight: -1}, lr=1.0, weight_decay=0.0, equal_outputs=True)
    for _ in range(20):
        weight.grad = torch.randn(8, 6, dtype=dtype)
        weight.grad[:, 2] *= 1e-7  # rounding of single precision
        optimizer.step()
    assert weight[:, 2].abs().max() < 0.1 * weight[:, [0, 1, 3, 4, 5]].abs().max()
    assert torch.isfinite(weight).all()


def test_gradients_of_any_usual_size_make_steps_of_one_size():
    torch.manual_seed(0)
    gradient = torch.randn(8, 6)
    steps = []
    for size in (1e-5, 1.0, 1e5):
        weight = torch.nn.Parameter(torch.zeros(8, 6))
        weight.grad = size * gradient
        Muon([weight], {weight: -1}, lr=1.0).step()
        steps.append(weight.detach().clone())
    assert torch.allclose(steps[0], steps[1], rtol=1e-2, atol=1e-2)
    assert torch.allclose(steps[1], steps[2], rtol=1e-5, atol=1e-6)
