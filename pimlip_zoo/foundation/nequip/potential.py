"""A potential from a file of ``nequip`` or ``nequip-allegro``: its options read, what is not supported refused."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pimlip_zoo.errors import InputError
from pimlip_zoo.foundation.nequip.constants import check_constants
from pimlip_zoo.foundation.nequip.options import configure
from pimlip_zoo.foundation.nequip.stored import StoredModel, read_model
from pimlip_zoo.foundation.nequip.weights import allegro_weights, nequip_weights
from pimlip_zoo.foundation.objects import check_finite, laid_out_as
from pimlip_zoo.models.allegro import Allegro
from pimlip_zoo.models.extent import check_extent
from pimlip_zoo.models.nequip import NequIP, NequIPConfig
from pimlip_zoo.models.potential import Potential

_LEVELS = "per_type_energy_scale_shift"
_MOST = {"num_layers": 32, "l_max": 8, "num_bessel": 1024}


def import_potential(file: str | Path) -> Potential:
    """The potential that a file of ``nequip`` stands for, in the precision of its weights.

    Energies, forces and stress are those of the package's calculator: with the moving average of the weights, where the
    training kept one.

    Args:
        file: a checkpoint (``.ckpt``) or a package (``.nequip.zip``) of a NequIP or Allegro model.

    Raises:
        InputError: when the file cannot be read, or holds a variant that is not supported.
    """
    file = Path(file)
    with laid_out_as("nequip 0.19", file):
        return _potential(read_model(file))


def _potential(stored: StoredModel) -> Potential:
    species = stored.options.get("type_names")
    if not isinstance(species, list) or not species or not all(isinstance(name, str) for name in species):
        raise InputError(f"has the types {reprlib.repr(species)}, which are no chemical symbols")
    check_finite(stored.weights)
    config = configure(stored.options, species)
    for name, most in _MOST.items():
        if getattr(config, name) > most:
            raise InputError(f"has {name} = {getattr(config, name)}", hint=f"at most {most} can be converted")
    model: NequIP | Allegro
    check_extent(
        NequIP if isinstance(config, NequIPConfig) else Allegro, config, species, stored.weights.values()
    )
    if isinstance(config, NequIPConfig):
        model = NequIP(config, species).to(torch.float64)
        model.load_state_dict(nequip_weights(model, stored.weights))
    else:
        model = Allegro(config, species).to(torch.float64)
        model.load_state_dict(allegro_weights(model, stored.weights))
    check_constants(model, stored.weights)
    potential = Potential(
        model,
        energy_references=_level(stored, "shifts", 0.0, len(species)),
        scale=_level(stored, "scales", 1.0, len(species)),
    )
    return potential.set_dtype(_dtype(stored)).eval()


def _dtype(stored: StoredModel) -> torch.dtype:
    names = {"float32": torch.float32, "float64": torch.float64}
    given: Any = stored.options.get("model_dtype")
    if given not in names:
        raise InputError(f"was built with model_dtype = {reprlib.repr(given)}, which is not supported")
    return names[given]


def _level(stored: StoredModel, name: str, default: float, count: int) -> Tensor:
    """One number for each species; the package keeps none, one, or as many."""
    values = stored.weights[f"{_LEVELS}.{name}"].to(torch.float64).reshape(-1)
    listed = isinstance(stored.options.get(f"per_type_energy_{name}"), dict | list)
    if values.numel() != count and (listed or values.numel() > 1):
        raise InputError(f"has {values.numel()} {name} for {count} types")
    return (values if values.numel() else torch.tensor([default], dtype=torch.float64)).expand(count)
