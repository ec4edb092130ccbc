"""Evaluate the ``sevenn`` package and keep what it computes as fixtures of the agreement tests.

Run it in an environment of its own::

    pip install sevenn==0.13.0
    python benchmarks/reference/sevennet_reference.py tests/agreement

``sevennet_NAME.pth.xz`` is a checkpoint of a tiny model with random weights, as that package saves it, one for each set
of options; ``sevennet_tiny.npz`` has what the package computes with them, and ``sevennet_real.npz`` what it computes
with the weights that are inside it, whose files are not copied: per structure ``STRUCTURE/numbers|positions|cell|pbc``,
and per model ``MODEL/STRUCTURE/energy|forces|stress`` (float64) and ``MODEL/STRUCTURE/forces32`` (the package's own
float32). A model of several levels of theory has one name for each, ``MODEL@LEVEL``. ``tiny`` or ``real`` after the
folder restricts it to these, names of models after that to them; what other models have in the file stays.
"""

from __future__ import annotations

import io
import lzma
import sys
import warnings
from pathlib import Path

import ase.build
import numpy as np
import sevenn
import sevenn._const as const
import sevenn.checkpoint
import sevenn.util
import torch
from ase import Atoms
from e3nn import o3
from sevenn.calculator import SevenNetCalculator
from sevenn.model_build import build_E3_equivariant_model
from sevenn.nn import node_embedding
from structures import structures

REAL = {
    "7net-0_11July2024": [None],
    "7net-0_22May2024": [None],
    "7net-l3i5": [None],
    "7net-mf-0": ["PBE", "R2SCAN"],
}
BASE = {
    **const.DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG,
    "version": sevenn.__version__,
    "_model_type": "E3_equivariant_model",
    "cutoff": 4.0,
    "_number_of_species": 4,
    "_type_map": {6: 0, 1: 1, 7: 2, 8: 3},
    "num_convolution_layer": 3,
    "weight_nn_hidden_neurons": [6],
    "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 5},
    "shift": [-1.5, 0.5, 0.25, -2.0],
    "scale": [1.5, 1.25, 0.75, 1.0],
}
DEGREES = "8x0e+4x1e+2x2e"
TINY = {
    "degrees": {
        "is_parity": False,
        "lmax": 2,
        "channel": 8,
        "irreps_manual": ["8x0e", DEGREES, DEGREES, "8x0e"],
        "cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 3.2},
        "self_connection_type": "linear",
        "conv_denominator": [3.0, 4.0, 5.0],
    },
    "parity": {
        "is_parity": True,
        "lmax": 2,
        "channel": 3,
        "num_convolution_layer": 2,
        "cutoff_function": {"cutoff_function_name": "poly_cut", "poly_cut_p_value": 5},
        "self_connection_type": "nequip",
        "use_bias_in_linear": True,
        "conv_denominator": 4.5,
        "shift": 0.5,
        "scale": 1.25,
    },
    # From the third layer on there are irreps of both parities, whose gates have an order.
    "both": {
        "is_parity": True,
        "lmax": 2,
        "channel": 3,
        "self_connection_type": "nequip",
        "use_bias_in_linear": True,
        "conv_denominator": [3.0, 4.0, 5.0],
    },
    "both_linear": {
        "is_parity": True,
        "lmax": 1,
        "channel": 2,
        "num_convolution_layer": 4,
        "self_connection_type": "linear",
        "use_bias_in_linear": True,
        "conv_denominator": 4.5,
    },
    "levels": {
        "is_parity": False,
        "lmax": 1,
        "channel": 6,
        "irreps_manual": ["6x0e", "6x0e+3x1e", "6x0e+3x1e", "6x0e"],
        "_normalize_sph": False,
        "self_connection_type": "linear",
        "conv_denominator": 6.0,
        "use_modality": True,
        "_number_of_modalities": 2,
        "_modal_map": {"low": 0, "high": 1},
        "use_modal_node_embedding": True,
        "use_modal_self_inter_intro": True,
        "use_modal_self_inter_outro": True,
        "use_modal_output_block": True,
        "use_modal_wise_shift": True,
        "use_modal_wise_scale": True,
        "shift": [[-1.5, 0.5, 0.25, -2.0], [1.0, 2.0, 3.0, 4.0]],
        "scale": [[1.5, 1.25, 0.75, 1.0], [1.0, 1.1, 1.2, 1.3]],
    },
}


def elements() -> dict[str, Atoms]:
    """Thirty-four structures of more than thirty elements: atoms, molecules, crystals, skewed cells, slabs."""
    bulk = ase.build.bulk
    found = {
        "atom-He": Atoms("He"),
        "atom-Fe": Atoms("Fe"),
        "dimer-Xe": Atoms("Xe2", [[0, 0, 0], [0, 0, 4.2]]),
        "H2O": ase.build.molecule("H2O"),
        "CH3Cl": ase.build.molecule("CH3Cl"),
        "SiH4": ase.build.molecule("SiH4"),
        "PH3": ase.build.molecule("PH3"),
        "SO2": ase.build.molecule("SO2"),
        "BF3": ase.build.molecule("BF3"),
        "C2H5OH": ase.build.molecule("CH3CH2OH"),
        "LiH": bulk("LiH", "rocksalt", a=4.08, cubic=True),
        "NaCl": bulk("NaCl", "rocksalt", a=5.64, cubic=True),
        "KBr": bulk("KBr", "rocksalt", a=6.6),
        "MgO": bulk("MgO", "rocksalt", a=4.21, cubic=True),
        "CaS": bulk("CaS", "rocksalt", a=5.69),
        "GaAs": bulk("GaAs", "zincblende", a=5.65, cubic=True),
        "InP": bulk("InP", "zincblende", a=5.87),
        "ZnO": bulk("ZnO", "wurtzite", a=3.25, c=5.2),
        "CdTe": bulk("CdTe", "zincblende", a=6.48),
        "CsI": bulk("CsI", "cesiumchloride", a=4.57),
        "Si": bulk("Si", cubic=True),
        "Ge": bulk("Ge"),
        "Al": bulk("Al", cubic=True),
        "Cu": bulk("Cu"),
        "Mo": bulk("Mo", cubic=True),
        "W": bulk("W"),
        "Ti": bulk("Ti"),
        "Zr": bulk("Zr"),
        "U": bulk("U", "fcc", a=4.9),
        "Gd": bulk("Gd", "hcp", a=3.63, c=5.78),
        "slab-Pt": ase.build.fcc111("Pt", (1, 2, 3), vacuum=6.0),
        "slab-Fe": ase.build.bcc100("Fe", (1, 1, 4), vacuum=6.0),
        "skewed-Ni": bulk("Ni", cubic=True),
        "skewed-SrTiO3": Atoms("SrTiO3", scaled_positions=_PEROVSKITE, cell=[3.9] * 3, pbc=True),
    }
    for name in ("skewed-Ni", "skewed-SrTiO3"):
        found[name].set_cell(
            found[name].cell.array @ ([*np.eye(3), [0, 0.15, -0.1], [0, 0.05, 0.3], [0, 0, -0.04]]),
            scale_atoms=True,
        )
    for seed, atoms in enumerate(found.values()):
        atoms.rattle(stdev=0.05, seed=seed)
        if not atoms.pbc.any():
            atoms.set_cell(np.zeros((3, 3)))
    return found


_PEROVSKITE = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]


def main(folder: Path, which: str | None, names: list[str]) -> None:
    """Write the fixtures."""
    _in_any_precision()
    if which in (None, "tiny"):
        for seed, name in enumerate(TINY):
            save_tiny(name, folder / f"sevennet_{name}.pth.xz", seed)
        levels = {name: list(options.get("_modal_map", [None])) for name, options in TINY.items()}
        atoms = {key: each for key, each in structures().items() if key != "pyridine"}
        write(folder / "sevennet_tiny.npz", atoms, levels, lambda name: unpacked(folder, name))
    if which in (None, "real"):
        chosen = {name: levels for name, levels in REAL.items() if not names or name in names}
        write(folder / "sevennet_real.npz", elements(), chosen, sevenn.util.pretrained_name_to_path)


def save_tiny(name: str, file: Path, seed: int) -> None:
    """A checkpoint of a model with random weights; its frequencies are no whole numbers."""
    torch.manual_seed(seed)
    config = {**BASE, **TINY[name]}
    model = build_E3_equivariant_model(dict(config))
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("coeffs"):
                value.add_(0.1 * torch.randn(value.shape))
            if key.endswith("bias"):
                value.copy_(torch.randn(value.shape))
    content = io.BytesIO()
    torch.save({"model_state_dict": model.state_dict(), "config": config, "epoch": 1}, content)
    file.write_bytes(lzma.compress(content.getvalue(), preset=9))


def unpacked(folder: Path, name: str) -> str:
    """The checkpoint of a tiny model as a file that the package reads."""
    file = Path("/tmp") / f"sevennet_{name}.pth"
    file.write_bytes(lzma.decompress((folder / f"sevennet_{name}.pth.xz").read_bytes()))
    return str(file)


def write(file: Path, atoms: dict[str, Atoms], models: dict[str, list], path_of) -> None:
    """What the package computes, added to what the file has."""
    found = dict(np.load(file)) if file.exists() else {}
    for name, each in atoms.items():
        found |= {
            f"{name}/numbers": each.numbers,
            f"{name}/positions": each.positions,
            f"{name}/cell": each.cell.array,
            f"{name}/pbc": each.pbc,
        }
    for model, levels in models.items():
        for level in levels:
            key = model if level is None else f"{model}@{level}"
            for dtype in (torch.float64, torch.float32):
                torch.set_default_dtype(dtype)  # also the precision of e3nn's constants
                calculator = SevenNetCalculator(path_of(model), device="cpu", modal=level)
                _exact_couplings(calculator.model)
                for name, each in atoms.items():
                    found |= {f"{key}/{name}/{k}": v for k, v in evaluated(each, calculator, dtype).items()}
            print(key, flush=True)
    np.savez_compressed(file, **found)


def evaluated(atoms: Atoms, calculator: SevenNetCalculator, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Of one structure; without a neighbour the package returns no forces, which are zero."""
    copy = atoms.copy()
    calculator.calculate(copy)
    forces = calculator.results["forces"]
    if dtype == torch.float32:
        return {"forces32": forces.astype(np.float32)}
    out = {"energy": np.asarray(calculator.results["energy"]), "forces": forces}
    return out | ({"stress": calculator.results["stress"]} if copy.pbc.all() else {})


def _exact_couplings(model: torch.nn.Module) -> None:
    """Checkpoints hold e3nn's couplings in float32, too, which are constants known to any precision."""
    for name, buffer in model.named_buffers():
        if "_w3j_" in name:
            degrees = [int(part) for part in name.rpartition("_w3j_")[2].split("_")]
            exact = o3.wigner_3j(*degrees, dtype=buffer.dtype)
            sign = 1 if float((exact * buffer).sum()) > 0 else -1
            buffer.copy_(sign * exact)


def _in_any_precision() -> None:
    """The package reads weights and makes graphs and one-hot vectors in float32 whatever the precision asked for."""
    before, correct = node_embedding.OnehotEmbedding.forward, sevenn.util.dtype_correct
    sevenn.util.dtype_correct = lambda value, *_: correct(value, torch.get_default_dtype())
    sevenn.checkpoint.copy_state_dict = lambda state: {
        name: value.to(torch.get_default_dtype()) for name, value in state.items()
    }

    def forward(self, data):
        data = before(self, data)
        for key in (self.key_output, self.key_additional_output):
            if key is not None:
                data[key] = data[key].to(torch.get_default_dtype())
        return data

    node_embedding.OnehotEmbedding.forward = forward


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None, sys.argv[3:])
