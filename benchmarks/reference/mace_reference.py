"""Evaluate the ``mace-torch`` package and keep weights, inputs and outputs as fixtures of the agreement tests.

Run it in an environment of its own::

    pip install mace-torch==0.3.16
    python benchmarks/reference/mace_reference.py tests/agreement

It writes one ``mace_*.npz`` per configuration: ``config`` (JSON, the arguments of ``ScaleShiftMACE``),
``weights/NAME`` (parameters and the buffers that a conversion needs), and per structure
``STRUCTURE/numbers|positions|cell|pbc`` with ``STRUCTURE/energy|forces`` and, where there is a cell,
``STRUCTURE/stress``. ``mace_zbl.npz`` has energies of its pair repulsion alone, ``mace_heads.npz`` the same as the
others for each head of a model with two. That model is in ``mace_heads.model``
as the package saves it, those with another gate in ``NAME.model.xz``. Names of configurations after the folder restrict
it to these. All is float64.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path

import mace  # noqa: F401  (before e3nn: it lets that load its constants)
import numpy as np
import torch
from ase import Atoms
from e3nn import o3
from mace import data, modules, tools
from mace.modules.radial import ZBLBasis
from mace.tools import torch_geometric
from structures import SPECIES, structures

ATOMIC_NUMBERS = [1, 6, 7, 8]

COMMON = {
    "r_max": 4.0,
    "num_interactions": 2,
    "readout_hidden": 16,
    "distance_transform": "None",
    "pair_repulsion": False,
}
CONFIGURATIONS = {
    "mace_residual_first": {
        **COMMON,
        "seed": 21,
        "first": "RealAgnosticResidualInteractionBlock",
        "hidden_irreps": "6x0e + 6x1o",
        "max_ell": 3,
        "correlation": 3,
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "radial_MLP": [16, 16, 16],
        "avg_num_neighbors": 12.5,
        "atomic_energies": [-13.6, -1029.5, -1485.0, -2042.0],
        "atomic_inter_scale": 1.3,
        "atomic_inter_shift": 0.25,
    },
    "mace_agnesi_zbl": {
        **COMMON,
        "seed": 22,
        "first": "RealAgnosticInteractionBlock",
        "hidden_irreps": "4x0e + 4x1o + 4x2e",
        "max_ell": 2,
        "correlation": 2,
        "num_bessel": 6,
        "num_polynomial_cutoff": 6,
        "radial_MLP": [12],
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
        "avg_num_neighbors": 9.0,
        "atomic_energies": [-1.5, 2.5, 0.5, -0.25],
        "atomic_inter_scale": 0.8,
        "atomic_inter_shift": -0.4,
    },
    "mace_scalars": {
        **COMMON,
        "seed": 23,
        "first": "RealAgnosticInteractionBlock",
        "hidden_irreps": "8x0e",
        "max_ell": 3,
        "correlation": 3,
        "num_interactions": 3,
        "num_bessel": 10,
        "num_polynomial_cutoff": 5,
        "radial_MLP": [16, 8],
        "readout_hidden": 5,
        "avg_num_neighbors": 15.0,
        "atomic_energies": [-1.5, 2.5, 0.5, -0.25],
        "atomic_inter_scale": 1.1,
        "atomic_inter_shift": 0.1,
    },
    "mace_density": {
        **COMMON,
        "seed": 24,
        "first": "RealAgnosticDensityInteractionBlock",
        "hidden_irreps": "4x0e + 4x1o",
        "max_ell": 3,
        "correlation": 2,
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "radial_MLP": [16, 16],
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
        "avg_num_neighbors": 10.0,
        "atomic_energies": [-1.5, 2.5, 0.5, -0.25],
        "atomic_inter_scale": 1.7,
        "atomic_inter_shift": 0.0,
    },
    "mace_correlation_4": {
        **COMMON,
        "seed": 25,
        "first": "RealAgnosticInteractionBlock",
        "hidden_irreps": "3x0e + 3x1o",
        "max_ell": 1,
        "correlation": 4,
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "radial_MLP": [16],
        "avg_num_neighbors": 3.0,
        "atomic_energies": [-1.5, 2.5, 0.5, -0.25],
        "atomic_inter_scale": 9.0,
        "atomic_inter_shift": 0.0,
    },
    "mace_heads": {
        **COMMON,
        "seed": 27,
        "first": "RealAgnosticResidualInteractionBlock",
        "hidden_irreps": "4x0e + 4x1o",
        "max_ell": 2,
        "correlation": 2,
        "num_bessel": 6,
        "num_polynomial_cutoff": 5,
        "radial_MLP": [8, 8],
        "readout_hidden": 3,
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
        "avg_num_neighbors": 11.0,
        "heads": ["small", "large"],
        "atomic_energies": [[-1.5, 2.5, 0.5, -0.25], [-1.25, 2.0, 0.75, -0.5]],
        "atomic_inter_scale": [1.2, 0.7],
        "atomic_inter_shift": [0.1, -0.2],
    },
    "mace_one_interaction": {
        **COMMON,
        "seed": 26,
        "first": "RealAgnosticInteractionBlock",
        "hidden_irreps": "6x0e",
        "max_ell": 2,
        "correlation": 3,
        "num_interactions": 1,
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "radial_MLP": [16],
        "avg_num_neighbors": 10.0,
        "atomic_energies": [-1.5, 2.5, 0.5, -0.25],
        "atomic_inter_scale": 1.0,
        "atomic_inter_shift": 0.0,
    },
}
SMALL = {
    **COMMON,
    "first": "RealAgnosticInteractionBlock",
    "hidden_irreps": "2x0e",
    "max_ell": 1,
    "correlation": 1,
    "num_bessel": 4,
    "num_polynomial_cutoff": 5,
    "radial_MLP": [4],
    "readout_hidden": 2,
    "avg_num_neighbors": 10.0,
    "atomic_energies": [-1.5, 2.5, 0.5, -0.25],
    "atomic_inter_scale": 20.0,
    "atomic_inter_shift": 0.0,
}
CONFIGURATIONS |= {
    "mace_gate_none": {**SMALL, "seed": 28, "gate": "None"},
    "mace_gate_tanh": {**SMALL, "seed": 29, "gate": "tanh"},
}
KEPT_BUFFERS = ("U_matrix", "atomic_energies", "scale_shift.scale", "scale_shift.shift", "bessel_weights")


def build(config: dict) -> torch.nn.Module:
    """The package's model; weights as it draws them, but none of them special."""
    torch.manual_seed(config["seed"])
    first = modules.interaction_classes[config["first"]]
    later = "RealAgnosticDensityResidual" if "Density" in config["first"] else "RealAgnosticResidual"
    return modules.ScaleShiftMACE(
        r_max=config["r_max"],
        num_bessel=config["num_bessel"],
        num_polynomial_cutoff=config["num_polynomial_cutoff"],
        max_ell=config["max_ell"],
        interaction_cls=modules.interaction_classes[f"{later}InteractionBlock"],
        interaction_cls_first=first,
        num_interactions=config["num_interactions"],
        num_elements=len(ATOMIC_NUMBERS),
        hidden_irreps=o3.Irreps(config["hidden_irreps"]),
        MLP_irreps=o3.Irreps(f"{config['readout_hidden']}x0e"),
        atomic_energies=np.array(config["atomic_energies"]),
        avg_num_neighbors=config["avg_num_neighbors"],
        atomic_numbers=ATOMIC_NUMBERS,
        correlation=config["correlation"],
        gate=modules.gate_dict[config.get("gate", "silu")],
        pair_repulsion=config["pair_repulsion"],
        distance_transform=config["distance_transform"],
        radial_MLP=config["radial_MLP"],
        atomic_inter_scale=config["atomic_inter_scale"],
        atomic_inter_shift=config["atomic_inter_shift"],
        heads=config.get("heads"),
    )


def batch(atoms: Atoms, cutoff: float, head: int = 0) -> dict[str, torch.Tensor]:
    """The structure as the package sees it."""
    table = tools.AtomicNumberTable(ATOMIC_NUMBERS)
    item = data.AtomicData.from_config(data.config_from_atoms(atoms), z_table=table, cutoff=cutoff)
    item.head = torch.tensor(head)
    loader = torch_geometric.dataloader.DataLoader([item], batch_size=1)
    return next(iter(loader)).to_dict()


def evaluate(model: torch.nn.Module, atoms: Atoms, cutoff: float, head: int = 0) -> dict[str, np.ndarray]:
    """Inputs and outputs of one structure."""
    out = model(batch(atoms, cutoff, head), compute_stress=bool(atoms.pbc.any()))
    result = {
        "numbers": atoms.numbers,
        "positions": atoms.positions,
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
        "energy": out["energy"].detach().numpy().reshape(()),
        "forces": out["forces"].detach().numpy(),
    }
    if atoms.pbc.any():
        result["stress"] = out["stress"].detach().numpy().reshape(3, 3)
    return result


def evaluate_zbl() -> dict[str, np.ndarray]:
    """The package's pair repulsion on pairs of atoms, from far inside to just outside its range."""
    arrays: dict[str, np.ndarray] = {}
    model = ZBLBasis(p=5)
    for first, second in (("H", "H"), ("C", "H"), ("N", "O"), ("C", "C")):
        distances = np.array([0.2, 0.45, 0.61, 0.9, 1.1, 1.3, 1.6])
        energies = []
        for distance in distances:
            inputs = batch(Atoms([first, second], [[0, 0, 0], [0, 0, distance]]), 4.0)
            vectors = (
                inputs["positions"][inputs["edge_index"][1]] - inputs["positions"][inputs["edge_index"][0]]
            )
            lengths = vectors.norm(dim=1, keepdim=True)
            values = model(lengths, inputs["node_attrs"], inputs["edge_index"], torch.tensor(ATOMIC_NUMBERS))
            energies.append(float(values.sum()))
        arrays[f"{first}-{second}/distances"] = distances
        arrays[f"{first}-{second}/energies"] = np.array(energies)
    return arrays


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = path.with_name(path.name + ".part.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def write_model(folder: Path, name: str, config: dict) -> None:
    model = build(config).eval()
    arrays = {"config": np.array(json.dumps(config)), "species": np.array(SPECIES)}
    heads = config.get("heads", [""])
    if len(heads) > 1:
        torch.save(model, folder / f"{name}.model")
    elif "gate" in config:
        torch.save(model, folder / f"{name}.model")
        (folder / f"{name}.model.xz").write_bytes(lzma.compress((folder / f"{name}.model").read_bytes()))
        (folder / f"{name}.model").unlink()
    else:
        parameters = dict(model.named_parameters())
        for key, value in model.state_dict().items():
            if key in parameters or any(part in key for part in KEPT_BUFFERS):
                arrays[f"weights/{key}"] = value.detach().numpy()
    for index, head in enumerate(heads):
        for structure, atoms in structures().items():
            for key, value in evaluate(model, atoms, config["r_max"], index).items():
                arrays["/".join(filter(None, (head, structure, key)))] = value
    write(folder / f"{name}.npz", arrays)


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name, config in CONFIGURATIONS.items():
        if not names or name in names:
            write_model(folder, name, config)
    if not names:
        write(folder / "mace_zbl.npz", evaluate_zbl())


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)  # mace-torch makes its modules in it
    main()
