"""A potential cut down to the species that are trained, and put together again when it is saved.

A foundation model has weights for some ninety species, and data to fine-tune it have two or three. Weights of absent
species have gradients of zero, and yet an optimiser, a moving average and a norm of gradients go through all of them:
a step of a MACE for 89 species takes almost three times as long as that of the same model for the two of the data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.models.potential import Potential
from pimlip_zoo.training.checkpoint import build_potential, describe
from pimlip_zoo.training.finetune import cluster, deviation, species_factor

EXACT = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Relative, by the precision of the weights: how well the small potential has to repeat the energies of the whole."""


@dataclass(frozen=True)
class Whole:
    """What a potential was cut down from."""

    potential: Potential
    """With all species; its rows of absent species are what is saved of them."""
    rows: tuple[int, ...]
    """Where the species of the small potential are among its own."""
    start: Mapping[str, Tensor]
    """The state of the small potential before anything was trained."""

    def weights(self, small: Potential, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of all species: those of the small potential, and the absent ones as they were.

        Args:
            small: the potential that was cut down.
            weights: its state, or averages of it, by name.
        """
        result = {}
        for name, saved in self.potential.state_dict().items():
            value, factor = weights[name], species_factor(small, self.potential, name)
            before = saved.detach().to(value.device, copy=True)
            axis = _axis(tuple(before.shape), tuple(value.shape))
            place = torch.tensor(self.rows, device=value.device)
            rows = before if axis is None else before.index_select(axis, place)
            # What has not moved stays as it was, to the last bit, which a factor and its inverse would not leave it.
            moved = value != self.start[name].to(value.device)
            rows = torch.where(moved, value * factor, rows)
            result[name] = rows if axis is None else before.index_copy(axis, place, rows)
        return result


def cut_down(whole: Potential, present: Collection[str]) -> tuple[Potential, Whole | None]:
    """The potential with rows for the species that are there, in their order, and what it takes to undo that.

    Weights by species are found by their shapes alone, and the energies are compared. A potential that cannot be cut
    down that way stays as it is.

    Args:
        whole: knows all of them, and others.
        present: the species to keep.
    """
    kept = tuple(symbol for symbol in whole.species if symbol in present)
    if not kept or len(kept) == len(whole.species):
        return whole, None
    rows = tuple(whole.species.index(symbol) for symbol in kept)
    try:
        small = build_potential({**describe(whole), "species": list(kept)})
        small.load_state_dict(_selected(whole, small, rows))
    except (InputError, ValueError, RuntimeError):
        return whole, None  # an option names an absent species, say
    if not _agree(whole, small, rows):
        return whole, None
    start = {name: value.detach().clone() for name, value in small.state_dict().items()}
    return small.train(whole.training), Whole(whole, rows, start)


def _selected(whole: Potential, small: Potential, rows: tuple[int, ...]) -> dict[str, Tensor]:
    before, result = whole.state_dict(), {}
    for name, value in small.state_dict().items():
        weight = before[name]
        axis = _axis(tuple(weight.shape), tuple(value.shape))
        if axis is not None:
            weight = weight.index_select(axis, torch.tensor(rows))
        factor = species_factor(whole, small, name)
        result[name] = weight * factor if factor != 1.0 else weight
    return result


def _axis(many: tuple[int, ...], few: tuple[int, ...]) -> int | None:
    """Where the two shapes differ; None: nowhere."""
    if many == few:
        return None
    axes = [axis for axis, (m, f) in enumerate(zip(many, few, strict=False)) if m != f]
    if len(many) != len(few) or len(axes) != 1:
        raise ValueError(f"{many} and {few} differ in more than the species")
    return axes[0]


def _agree(whole: Potential, small: Potential, rows: tuple[int, ...]) -> bool:
    graph = cluster(small)
    of_whole = graph._replace(species=torch.tensor(rows)[graph.species])
    error, size = deviation((whole, of_whole), (small, graph))
    return error <= EXACT[whole.model.dtype] * size
