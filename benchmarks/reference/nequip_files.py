"""Train small models with ``nequip`` and ``nequip-allegro``, keep their files and what they compute for the tests.

Run it in an environment of its own::

    pip install nequip==0.19.0 nequip-allegro==0.8.3
    python benchmarks/reference/nequip_files.py tests/agreement

It writes ``NAME.ckpt.xz`` and ``NAME.nequip.zip.xz`` as ``nequip-train`` and ``nequip-package`` write them (a few
epochs on a few structures with random labels), and ``NAME.npz``: the structures of ``structures.py`` with energies,
forces and stress of the package's own calculator.
"""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from structures import SPECIES, structures

COMMON = {"seed": 7, "r_max": 4.0, "type_names": SPECIES, "parity": True, "avg_num_neighbors": 11.0}
LEVELS = {
    "per_type_energy_scales": {"H": 0.7, "C": 1.3, "N": 0.9, "O": 1.1},
    "per_type_energy_shifts": {"H": -1.5, "C": 2.5, "N": 0.5, "O": -0.25},
}
MODELS: dict[str, dict[str, Any]] = {
    "nequip_file": {
        "_target_": "nequip.model.NequIPGNNModel",
        **COMMON,
        **LEVELS,
        "model_dtype": "float64",
        "l_max": 1,
        "num_layers": 3,
        "num_features": 4,
        "radial_mlp_depth": 1,
        "radial_mlp_width": 8,
        "bessel_trainable": True,
        "per_edge_type_cutoff": {"H": 2.5, "C": {"H": 3.0, "C": 3.5}},
        "per_type_energy_shifts_trainable": True,
    },
    "nequip_file_single": {
        "_target_": "nequip.model.NequIPGNNModel",
        **COMMON,
        "model_dtype": "float32",
        "parity": False,
        "l_max": 2,
        "num_layers": 2,
        "num_features": 4,
        "radial_mlp_width": 8,
        "readout_mlp_hidden_layers_depth": 1,
        "readout_mlp_hidden_layers_width": 6,
        "polynomial_cutoff_p": 5,
        "per_type_energy_scales": 0.9,
        "per_type_energy_shifts": -2.5,
    },
    "allegro_file": {
        "_target_": "allegro.model.AllegroModel",
        **COMMON,
        **LEVELS,
        "model_dtype": "float64",
        "l_max": 2,
        "radial_chemical_embed": {
            "_target_": "allegro.nn.TwoBodyBesselScalarEmbed",
            "num_bessels": 6,
            "bessel_trainable": True,
            "polynomial_cutoff_p": 5,
        },
        "num_layers": 2,
        "num_scalar_features": 6,
        "num_tensor_features": 3,
        "scalar_embed_mlp_hidden_layers_width": 8,
        "allegro_mlp_hidden_layers_width": 8,
        "readout_mlp_hidden_layers_width": 6,
    },
}
AVERAGED = ("nequip_file", "allegro_file")
"""Trained with a moving average of the weights, which is what their calculators use."""


def labelled(seed: int) -> list[Atoms]:
    """The structures with labels that mean nothing; the weights only have to move."""
    rng = np.random.default_rng(seed)
    frames = []
    for atoms in [*structures().values()] * 2:
        frame = atoms.copy()
        if not frame.pbc.any():
            frame.set_cell(20.0 * np.eye(3))
        frame.rattle(0.05, seed=int(rng.integers(1000)))
        frame.calc = SinglePointCalculator(
            frame, energy=float(rng.normal()), forces=rng.normal(size=(len(frame), 3))
        )
        frames.append(frame)
    return frames


def configuration(model: dict[str, Any], data: Path, *, average: bool) -> dict[str, Any]:
    """What ``nequip-train`` is given."""
    transforms = [
        {"_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper", "model_type_names": SPECIES},
        {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": model["r_max"]},
    ]
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": 4}
    return {
        "run": ["train"],
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": 1,
            "train_file_path": str(data),
            "val_file_path": str(data),
            "transforms": transforms,
            "train_dataloader": loader,
            "val_dataloader": loader,
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "accelerator": "cpu",
            "max_epochs": 6,
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [
                {
                    "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "dirpath": "${hydra:runtime.output_dir}",
                    "save_last": True,
                }
            ],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule"
            if average
            else "nequip.train.NequIPLightningModule",
            **({"ema_decay": 0.5} if average else {}),
            "loss": {
                "_target_": "nequip.train.EnergyForceLoss",
                "per_atom_energy": True,
                "coeffs": {"total_energy": 1.0, "forces": 1.0},
            },
            "val_metrics": {
                "_target_": "nequip.train.EnergyForceMetrics",
                "coeffs": {"total_energy_mae": 1.0, "forces_mae": 1.0},
            },
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
            "model": model,
        },
    }


def evaluate(package: Path) -> dict[str, np.ndarray]:
    """Inputs, and outputs of the package's calculator."""
    from nequip.integrations.ase import NequIPCalculator

    calculator = NequIPCalculator._from_saved_model(str(package), device="cpu")  # noqa: SLF001
    arrays: dict[str, np.ndarray] = {}
    for name, atoms in structures().items():
        atoms.calc = calculator
        arrays |= {f"{name}/{key}": getattr(atoms, key) for key in ("numbers", "positions", "pbc")}
        arrays[f"{name}/cell"] = atoms.cell.array
        arrays[f"{name}/energy"] = np.array(atoms.get_potential_energy())
        arrays[f"{name}/forces"] = atoms.get_forces()
        if atoms.pbc.any():
            arrays[f"{name}/stress"] = atoms.get_stress(voigt=False)
    return arrays


def make(folder: Path, name: str, model: dict[str, Any]) -> None:
    """Train, package, evaluate."""
    tools = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        write(scratch / "data.extxyz", labelled(3))
        config = configuration(model, scratch / "data.extxyz", average=name in AVERAGED)
        (scratch / "config.yaml").write_text(yaml.safe_dump(config))
        subprocess.run(
            [str(tools / "nequip-train"), "-cp", str(scratch), "-cn", "config", f"hydra.run.dir={scratch}"],
            check=True,
        )
        checkpoint, package = scratch / "last.ckpt", scratch / f"{name}.nequip.zip"
        subprocess.run([str(tools / "nequip-package"), "build", str(checkpoint), str(package)], check=True)
        for file, suffix in ((checkpoint, ".ckpt"), (package, ".nequip.zip")):
            (folder / f"{name}{suffix}.xz").write_bytes(lzma.compress(file.read_bytes(), preset=9))
        config_text = np.array(json.dumps(model))
        np.savez_compressed(
            folder / f"{name}.npz", config=config_text, species=np.array(SPECIES), **evaluate(package)
        )


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name, model in MODELS.items():
        if not names or name in names:
            make(folder, name, model)


if __name__ == "__main__":
    main()
