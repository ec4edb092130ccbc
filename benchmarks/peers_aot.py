"""Compiles a peer's model for inference as its own command does (AOTInductor), without training it first.

Run with the peer's interpreter; `speed.py compare --modes aot` takes what it writes:

    .peers/nequip/bin/python benchmarks/peers_aot.py nequip small PEER_SCRIPTS FILE.nequip.pt2

The widths are those of `peers_common.py`, in the folder PEER_SCRIPTS. `nequip-compile` takes checkpoints of
training runs only; here it gets a model with the weights of its seed.
"""

from __future__ import annotations

import sys
import time


def main() -> int:
    architecture, size, scripts, output = sys.argv[1:5]
    sys.path.insert(0, scripts)
    import peers_common as common
    from nequip.data import from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.scripts import compile as command
    from nequip.utils.global_state import set_global_state

    set_global_state()
    settings = {
        **common.CONFIGS[architecture][size],
        "seed": 0,
        "model_dtype": "float32",
        "type_names": common.TYPES,
        "r_max": common.R_MAX,
        "compile_mode": "eager",
        "avg_num_neighbors": common.AVG_NN,
        "per_type_energy_shifts": common.E0,
        "per_type_energy_scales": dict.fromkeys(common.TYPES, common.FRMS),
    }
    if architecture == "nequip":
        from nequip.model import NequIPGNNModel as Model
    else:
        from allegro.model import AllegroModel as Model

        settings["radial_chemical_embed"] = {
            "_target_": "allegro.nn.TwoBodyBesselScalarEmbed",
            "num_bessels": 8,
            "bessel_trainable": False,
            "polynomial_cutoff_p": 6,
        }
    model = Model(**settings).eval()
    atoms = common.frames(1)[0]
    atoms.cell, atoms.pbc = [20.0, 20.0, 20.0], True
    data = from_ase(atoms)
    for transform in (ChemicalSpeciesToAtomTypeMapper(common.TYPES), NeighborListTransform(common.R_MAX)):
        data = transform(data)
    command.load_saved_model = lambda *_, **__: (model, data)
    begun = time.process_time()
    command.main(["none.ckpt", output, "--mode", "aotinductor", "--device", "cpu", "--target", "ase"])
    print(f"{architecture} {size}: {time.process_time() - begun:.0f} s of this process")
    return 0


if __name__ == "__main__":
    sys.exit(main())
