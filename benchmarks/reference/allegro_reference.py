"""Evaluate the ``nequip-allegro`` package; keep weights, inputs, outputs as fixtures of the agreement tests.

Run it in an environment of its own::

    pip install nequip==0.19.1 nequip-allegro==0.8.3 ase
    python benchmarks/reference/allegro_reference.py tests/agreement

It writes one ``allegro_*.npz`` per configuration, laid out as those of ``nequip_reference.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from peer import evaluate_and_write
from structures import SPECIES

CONFIGURATIONS = {
    "allegro_both_parities": {
        "seed": 21,
        "r_max": 4.0,
        "l_max": 2,
        "parity": True,
        "num_layers": 3,
        "num_scalar_features": 8,
        "num_tensor_features": 4,
        "scalar_embed_mlp_hidden_layers_depth": 1,
        "scalar_embed_mlp_hidden_layers_width": 12,
        "allegro_mlp_hidden_layers_depth": 1,
        "allegro_mlp_hidden_layers_width": 12,
        "readout_mlp_hidden_layers_depth": 1,
        "readout_mlp_hidden_layers_width": 6,
        "avg_num_neighbors": 13.0,
        "per_type_energy_scales": {"H": 0.7, "C": 1.3, "N": 0.9, "O": 1.1},
        "per_type_energy_shifts": {"H": -13.6, "C": -1029.5, "N": -1485.0, "O": -2042.0},
    },
    "allegro_natural_parity": {
        "seed": 22,
        "r_max": 4.0,
        "l_max": 2,
        "parity": False,
        "num_layers": 2,
        "num_scalar_features": 8,
        "num_tensor_features": 6,
        "scalar_embed_mlp_hidden_layers_depth": 2,
        "scalar_embed_mlp_hidden_layers_width": 10,
        "allegro_mlp_hidden_layers_depth": 2,
        "allegro_mlp_hidden_layers_width": 9,
        "readout_mlp_hidden_layers_depth": 0,
        "avg_num_neighbors": 8.0,
        "per_type_energy_scales": {"H": 0.7, "C": 1.3, "N": 0.9, "O": 1.1},
        "per_type_energy_shifts": {"H": -1.5, "C": 2.5, "N": 0.5, "O": -0.25},
    },
    "allegro_options": {
        "seed": 23,
        "r_max": 4.0,
        "l_max": 1,
        "parity": True,
        "num_layers": 5,
        "num_scalar_features": 7,
        "num_tensor_features": 5,
        "radial_chemical_embed_dim": 6,
        "tp_path_channel_coupling": False,
        "scalar_embed_mlp_hidden_layers_depth": 0,
        "allegro_mlp_hidden_layers_depth": 0,
        "readout_mlp_hidden_layers_depth": 2,
        "readout_mlp_hidden_layers_width": 5,
        "per_edge_type_cutoff": {"H": 2.5, "C": {"H": 3.0, "C": 3.5}, "N": 3.75},
        "avg_num_neighbors": 6.0,
        "per_type_energy_scales": {"H": 1.7, "C": 0.3, "N": 0.6, "O": 1.9},
        "per_type_energy_shifts": {"H": -1.5, "C": 2.5, "N": 0.5, "O": -0.25},
    },
    "allegro_one_layer": {
        "seed": 24,
        "r_max": 3.5,
        "l_max": 3,
        "parity": True,
        "num_layers": 1,
        "num_scalar_features": 6,
        "num_tensor_features": 4,
        "scalar_embed_mlp_hidden_layers_width": 8,
        "allegro_mlp_hidden_layers_width": 8,
        "readout_mlp_hidden_layers_width": 8,
        "avg_num_neighbors": 6.0,
        "per_type_energy_scales": {"H": 1.7, "C": 0.3, "N": 0.6, "O": 1.9},
        "per_type_energy_shifts": {"H": -1.5, "C": 2.5, "N": 0.5, "O": -0.25},
    },
}
RADIAL = {
    "allegro_both_parities": {"num_bessels": 8, "bessel_trainable": False, "polynomial_cutoff_p": 6},
    "allegro_natural_parity": {"num_bessels": 6, "bessel_trainable": False, "polynomial_cutoff_p": 5},
    "allegro_options": {"num_bessels": 8, "bessel_trainable": True, "polynomial_cutoff_p": 6},
    "allegro_one_layer": {"num_bessels": 4, "bessel_trainable": True, "polynomial_cutoff_p": 3},
}


def main() -> None:
    from allegro.model import AllegroModel

    for name, config in CONFIGURATIONS.items():
        embed = {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", **RADIAL[name]}
        model = AllegroModel(**config, radial_chemical_embed=embed, type_names=SPECIES, model_dtype="float64")
        evaluate_and_write(model, {**config, **RADIAL[name]}, Path(sys.argv[1]) / f"{name}.npz")


if __name__ == "__main__":
    from nequip.utils.global_state import set_global_state

    set_global_state()
    main()
