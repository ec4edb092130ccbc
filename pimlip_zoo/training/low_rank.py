"""Low-rank updates of a potential's linear maps (LoRA: Hu et al., ICLR 2022), which keep it equivariant.

A map of equal irreps mixes channels with one matrix, whatever the component m: ``W + A B`` mixes them just as
equivariantly, and with ``B = 0`` at the start it is the model that is fine-tuned (Wang et al., ELoRA, ICML 2025).

The potential itself always holds ``W + A B``. Gradients of A and B follow from that of the sum, ``dL/dA = G B^T`` and
``dL/dB = A^T G``, so that kernels, sweeps, averages, validations, checkpoints and exports see a plain model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pimlip_zoo.errors import InputError
from pimlip_zoo.models.potential import Potential


def adapted_maps(potential: Potential) -> dict[str, nn.Parameter]:
    """The matrices of a potential by name: equivariant maps, those by species, and those of scalars."""
    of_maps = {
        id(weight)
        for part in potential.model.modules()
        if getattr(part, "weights_are_maps", False)
        for weight in cast("Iterable[Tensor]", part.weights)
    }
    named = potential.model.named_parameters()
    return {name: weight for name, weight in named if id(weight) in of_maps and weight.requires_grad}


class Adapters:
    """The factors A and B of every map, and what the maps were before.

    Args:
        potential: its maps are adapted, and everything else of its architecture is frozen.
        rank: of the updates; a map that is narrower has its full rank.
        seed: of A.

    Raises:
        InputError: when there is no map that is not frozen.
    """

    def __init__(self, potential: Potential, rank: int, seed: int = 0) -> None:
        self.maps = adapted_maps(potential)
        if not self.maps:
            raise InputError(
                "no linear map is left to adapt", key="finetune.lora", hint="freeze less, or leave it out"
            )
        for parameter in potential.model.parameters():
            if all(parameter is not weight for weight in self.maps.values()):
                parameter.requires_grad_(False)
        self.base = {name: weight.detach().clone() for name, weight in self.maps.items()}
        self.factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        generator = torch.Generator().manual_seed(seed % 2**63)
        for name, weight in self.maps.items():
            *species, rows, columns = _stacked(weight).shape
            r = min(rank, rows, columns)
            # With entries of 1/sqrt(r) a step of Adam on B moves the entries of A B as far as it would move W's.
            a = torch.randn(*species, rows, r, generator=generator, dtype=torch.float64) / math.sqrt(r)
            b = torch.zeros(*species, r, columns, dtype=torch.float64)
            self.factors[name] = (nn.Parameter(a.to(weight.dtype)), nn.Parameter(b.to(weight.dtype)))

    @property
    def count(self) -> int:
        """How many numbers are trained."""
        return sum(factor.numel() for pair in self.factors.values() for factor in pair)

    def to(self, device: torch.device) -> None:
        """Move the factors to where the potential is."""
        self.base = {name: value.to(device) for name, value in self.base.items()}
        for pair in self.factors.values():
            for factor in pair:
                factor.data = factor.data.to(device)

    @torch.no_grad()
    def project(self) -> None:
        """Turn the gradients of the maps into those of the factors."""
        for name, weight in self.maps.items():
            if weight.grad is None:
                continue
            a, b = self.factors[name]
            gradient = _stacked(weight.grad)
            a.grad, b.grad = gradient @ b.mT, a.mT @ gradient
            weight.grad = None

    @torch.no_grad()
    def merge(self) -> None:
        """Put ``W + A B`` into the potential."""
        for name, weight in self.maps.items():
            a, b = self.factors[name]
            _stacked(weight).copy_(_stacked(self.base[name]) + a @ b)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: factors, and the maps before."""
        return {
            "base": dict(self.base),
            "a": {name: a.detach() for name, (a, _) in self.factors.items()},
            "b": {name: b.detach() for name, (_, b) in self.factors.items()},
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """See :meth:`state`.

        Raises:
            InputError: for a state of other maps or another rank.
        """
        for name, (a, b) in self.factors.items():
            found = [state[part].get(name) for part in ("base", "a", "b")]
            own = (self.base[name], a, b)
            if any(f is None or f.shape != o.shape for f, o in zip(found, own, strict=True)):
                raise InputError(
                    f"the checkpoint has other low-rank updates of {name}",
                    key="finetune.lora",
                    hint="resume with the rank of the run",
                )
            for old, new in zip(own, found, strict=True):
                assert new is not None
                old.copy_(new)


def _stacked(weight: Tensor) -> Tensor:
    """(in, out) as it is, (in, species, out) as a view (species, in, out)."""
    return weight.transpose(0, 1) if weight.dim() == 3 else weight
