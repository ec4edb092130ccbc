"""Evaluating a model of the nequip framework in float64 and writing what came out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from structures import SPECIES, structures


def evaluate_and_write(model: torch.nn.Module, config: dict, path: Path) -> None:
    """Perturb the weights that start at special values, evaluate all structures, write the fixture."""
    torch.manual_seed(config["seed"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bessel" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval()
    arrays = {"config": np.array(json.dumps(config)), "species": np.array(SPECIES)}
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        if name in parameters or name.endswith(("scales", "shifts")):
            arrays[f"weights/{name}"] = value.detach().cpu().numpy()
    for name, atoms in structures().items():
        for key, value in _evaluate(model, atoms, config["r_max"]).items():
            arrays[f"{name}/{key}"] = value
    temporary = path.with_name(path.name + ".part.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)
    count = sum(parameter.numel() for parameter in parameters.values())
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB, {count} parameters")


def _evaluate(model: torch.nn.Module, atoms, cutoff: float) -> dict[str, np.ndarray]:
    from nequip.data import from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

    data = from_ase(atoms)
    for transform in (ChemicalSpeciesToAtomTypeMapper(SPECIES), NeighborListTransform(cutoff)):
        data = transform(data)
    out = model(data)
    result = {
        "numbers": atoms.numbers,
        "positions": atoms.positions,
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
        "energy": out["total_energy"].detach().numpy().reshape(()),
        "forces": out["forces"].detach().numpy(),
    }
    if atoms.pbc.any():
        result["stress"] = out["stress"].detach().numpy().reshape(3, 3)
    return result
