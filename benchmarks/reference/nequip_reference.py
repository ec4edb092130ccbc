"""Evaluate the ``nequip`` package and keep weights, inputs and outputs as fixtures of the agreement tests.

Run it in an environment of its own::

    pip install nequip==0.19.1 nequip-allegro==0.8.3 ase
    python benchmarks/reference/nequip_reference.py tests/agreement

It writes one ``nequip_*.npz`` per configuration: ``config`` (JSON, the arguments of ``NequIPGNNModel``),
``weights/NAME`` (the package's state dict), and per structure ``STRUCTURE/numbers|positions|cell|pbc`` with
``STRUCTURE/energy|forces`` and, where there is a cell, ``STRUCTURE/stress``. Everything is float64.
"""

from __future__ import annotations

import sys
from pathlib import Path

from peer import evaluate_and_write
from structures import SPECIES

CONFIGURATIONS = {
    "nequip_natural_parity": {
        "seed": 11,
        "r_max": 4.0,
        "l_max": 2,
        "parity": False,
        "num_layers": 2,
        "num_features": 8,
        "radial_mlp_depth": 1,
        "radial_mlp_width": 16,
        "num_bessels": 8,
        "polynomial_cutoff_p": 6,
        "avg_num_neighbors": 13.0,
        "per_type_energy_scales": {"H": 0.7, "C": 1.3, "N": 0.9, "O": 1.1},
        "per_type_energy_shifts": {"H": -13.6, "C": -1029.5, "N": -1485.0, "O": -2042.0},
    },
    "nequip_both_parities": {
        "seed": 12,
        "r_max": 4.0,
        "l_max": 2,
        "parity": True,
        "num_layers": 4,
        "num_features": 4,
        "radial_mlp_depth": 2,
        "radial_mlp_width": 12,
        "num_bessels": 6,
        "polynomial_cutoff_p": 5,
        "avg_num_neighbors": 9.3,
        "per_type_energy_scales": {"H": 0.7, "C": 1.3, "N": 0.9, "O": 1.1},
        "per_type_energy_shifts": {"H": -1.5, "C": 2.5, "N": 0.5, "O": -0.25},
    },
    "nequip_options": {
        "seed": 13,
        "r_max": 4.0,
        "l_max": 1,
        "parity": True,
        "num_layers": 3,
        "num_features": 6,
        "radial_mlp_depth": 1,
        "radial_mlp_width": 16,
        "readout_mlp_hidden_layers_depth": 1,
        "readout_mlp_hidden_layers_width": 10,
        "num_bessels": 8,
        "bessel_trainable": True,
        "polynomial_cutoff_p": 6,
        "per_edge_type_cutoff": {"H": 2.5, "C": {"H": 3.0, "C": 3.5}, "N": 3.75},
        "avg_num_neighbors": 11.0,
        "per_type_energy_scales": {"H": 1.7, "C": 0.3, "N": 0.6, "O": 1.9},
        "per_type_energy_shifts": {"H": -1.5, "C": 2.5, "N": 0.5, "O": -0.25},
    },
}


def main() -> None:
    from nequip.model import NequIPGNNModel

    for name, config in CONFIGURATIONS.items():
        model = NequIPGNNModel(**config, type_names=SPECIES, model_dtype="float64")
        evaluate_and_write(model, config, Path(sys.argv[1]) / f"{name}.npz")


if __name__ == "__main__":
    from nequip.utils.global_state import set_global_state

    set_global_state()
    main()
