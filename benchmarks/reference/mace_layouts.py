"""The layouts of the published models of ``mace-torch``, built with random weights, and what they compute.

The published weights are not needed: what an import has to get right are the options, and those are public
(the training scripts beside the models, the documentation of ``mace-torch``). Run it in two environments::

    pip install mace-torch==0.3.16                                          # an environment of its own
    python benchmarks/reference/mace_layouts.py build FOLDER                # full sizes, files for the next step
    python benchmarks/reference/mace_layouts.py fixtures tests/agreement    # few channels, all options, for the tests
    pimlip-zoo's python benchmarks/reference/mace_layouts.py compare FOLDER # imports, compares, prints the table

``build`` and ``fixtures`` write ``NAME.model`` (compressed for the tests) and ``NAME.npz``: inputs of the structures
and, per case (head, charge, spin), energies, forces and stress in float64; ``build`` also those of float32. Names of
layouts behind the folder restrict it to these.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np

ORGANIC = [1, 6, 7, 8, 9, 15, 16, 17, 35, 53]
METALS = [*range(1, 84), *range(89, 95)]
"""89 elements: hydrogen to bismuth, actinium to plutonium."""

MP = {
    "r_max": 6.0,
    "num_bessel": 10,
    "num_polynomial_cutoff": 5,
    "max_ell": 3,
    "num_interactions": 2,
    "correlation": 3,
    "radial_MLP": [64, 64, 64],
    "MLP_irreps": "16x0e",
    "avg_num_neighbors": 61.96,
    "elements": METALS,
    "first": "RealAgnosticResidualInteractionBlock",
    "later": "RealAgnosticResidualInteractionBlock",
    "scale": 0.8,
    "shift": 0.16,
}
REPULSIVE = {"pair_repulsion": True, "distance_transform": "Agnesi"}
DENSITY = {
    **REPULSIVE,
    "first": "RealAgnosticDensityInteractionBlock",
    "later": "RealAgnosticDensityResidualInteractionBlock",
}
OFF = {**MP, "r_max": 5.0, "num_bessel": 8, "avg_num_neighbors": 16.0, "elements": ORGANIC}
NONLINEAR = {
    **MP,
    "first": "RealAgnosticResidualNonLinearInteractionBlock",
    "later": "RealAgnosticResidualNonLinearInteractionBlock",
    "apply_cutoff": False,
    "use_agnostic_product": True,
    "readout": "NonLinearBiasReadoutBlock",
}
GRAPH = {"type": "categorical", "per": "graph", "in_dim": 1}
SMALL, MEDIUM, LARGE = "0e", "0e + 1o", "0e + 1o + 2e"

LAYOUTS: dict[str, dict[str, Any]] = {
    "mp-0a-small": {**MP, "channels": 128, "hidden": SMALL},
    "mp-0a-medium": {**MP, "channels": 128, "hidden": MEDIUM},
    "mp-0a-large": {**MP, "channels": 128, "hidden": LARGE},
    "mp-0b-small": {**MP, **REPULSIVE, "channels": 128, "hidden": SMALL},
    "mp-0b-medium": {**MP, **REPULSIVE, "channels": 128, "hidden": MEDIUM},
    "mp-0b2-small": {**MP, **DENSITY, "channels": 128, "hidden": SMALL},
    "mp-0b2-medium, 0b3": {**MP, **DENSITY, "channels": 128, "hidden": MEDIUM},
    "mp-0b2-large": {**MP, **DENSITY, "channels": 128, "hidden": LARGE},
    "mpa-0-medium": {**MP, **DENSITY, "channels": 128, "hidden": MEDIUM},
    "omat-0-small": {**MP, **DENSITY, "channels": 128, "hidden": SMALL, "num_bessel": 8},
    "omat-0-medium, matpes-0": {**MP, **DENSITY, "channels": 128, "hidden": MEDIUM, "num_bessel": 8},
    "off23-small": {**OFF, "channels": 96, "hidden": SMALL, "r_max": 4.5},
    "off23-medium": {**OFF, "channels": 128, "hidden": MEDIUM},
    "off23-large": {**OFF, "channels": 192, "hidden": LARGE},
    "off24-small": {**OFF, "channels": 96, "hidden": SMALL, "r_max": 6.0},
    "off24-medium": {**OFF, "channels": 128, "hidden": MEDIUM, "r_max": 6.0},
    "off24-large": {**OFF, "channels": 192, "hidden": LARGE, "r_max": 6.0},
    "mh-0": {
        **NONLINEAR,
        **REPULSIVE,
        "channels": 256,
        "hidden": MEDIUM,
        "edge_irreps": "128x0e + 128x1o",
        "heads": ["matpes_r2scan", "mp_pbe_refit_add", "spice_wB97M", "oc20_usemppbe", "omol", "omat_pbe"],
        "cases": [{"head": "omat_pbe"}, {"head": "spice_wB97M"}],
    },
    "mh-1": {
        **NONLINEAR,
        **REPULSIVE,
        "channels": 512,
        "hidden": MEDIUM,
        "edge_irreps": "128x0e + 128x1o",
        "heads": ["matpes_r2scan", "mp_pbe_refit_add", "spice_wB97M", "oc20_usemppbe", "omol", "omat_pbe"],
        "cases": [{"head": "omat_pbe"}, {"head": "omol"}],
    },
    "omol-0-extra-large": {
        **NONLINEAR,
        "channels": 1024,
        "hidden": LARGE,
        "edge_irreps": "128x0e + 128x1o + 128x2e",
        "num_interactions": 3,
        "correlation": 2,
        "num_bessel": 8,
        "avg_num_neighbors": 30.0,
        "elements": list(range(1, 84)),
        "heads": ["omol"],
        "use_last_readout_only": True,
        "use_embedding_readout": True,
        "embedding_specs": {
            "total_spin": {**GRAPH, "emb_dim": 1024, "num_classes": 101, "offset": 0},
            "total_charge": {**GRAPH, "emb_dim": 1024, "num_classes": 201, "offset": 100},
        },
        "cases": [{"charge": 0, "spin": 1}, {"charge": -2, "spin": 3}],
    },
}
"""Hyperparameters as published; where a layout stands for two names, they differ in their training alone. The number of
channels of mh-0 and the edge irreps of mh-0 and mh-1 are not, and were chosen by the size of the files."""

FIXTURES: dict[str, dict[str, Any]] = {
    "mace_layout_mp0": {
        **LAYOUTS["mp-0a-medium"],
        "channels": 2,
        "elements": [1, 6, 7, 8, 14],
        "scale": 40.0,
    },
    "mace_layout_mpa0": {**LAYOUTS["mpa-0-medium"], "channels": 2, "scale": 40.0},
    "mace_layout_off": {**LAYOUTS["off23-large"], "channels": 3, "scale": 40.0},
    "mace_layout_mh": {
        **LAYOUTS["mh-1"],
        "channels": 4,
        "scale": 40.0,
        "edge_irreps": "3x0e + 3x1o",
        "radial_MLP": [12, 8],
        "MLP_irreps": "5x0e",
        "heads": ["omol", "spice_wB97M", "omat_pbe"],
        "cases": [{"head": "omat_pbe"}, {"head": "omol"}, {"head": "spice_wB97M"}],
        "elements": [1, 6, 7, 8, 14],
    },
    "mace_layout_omol": {
        **LAYOUTS["omol-0-extra-large"],
        "channels": 4,
        "scale": 40.0,
        "edge_irreps": "3x0e + 3x1o + 3x2e",
        "radial_MLP": [12, 8],
        "MLP_irreps": "5x0e",
        "max_ell": 2,
        "elements": [1, 6, 7, 8, 14],
        "embedding_specs": {
            "total_spin": {**GRAPH, "emb_dim": 3, "num_classes": 7, "offset": 0},
            "total_charge": {**GRAPH, "emb_dim": 5, "num_classes": 9, "offset": 4},
        },
    },
}


def build_model(layout: dict[str, Any], seed: int) -> Any:
    """The package's model with random weights, none of which keeps a special value that would hide a mistake."""
    import torch
    from e3nn import o3
    from mace import modules

    torch.manual_seed(seed)
    heads = layout.get("heads")
    count = len(heads or [""])
    energies = -5.0 * torch.rand(count, len(layout["elements"]))
    optional = ("apply_cutoff", "use_agnostic_product", "use_last_readout_only", "use_embedding_readout")
    given = {name: layout[name] for name in (*optional, "embedding_specs") if name in layout}
    if "edge_irreps" in layout:
        given["edge_irreps"] = o3.Irreps(layout["edge_irreps"])
    if "readout" in layout:
        given["readout_cls"] = modules.readout_classes[layout["readout"]]
    model = modules.ScaleShiftMACE(
        r_max=layout["r_max"],
        num_bessel=layout["num_bessel"],
        num_polynomial_cutoff=layout["num_polynomial_cutoff"],
        max_ell=layout["max_ell"],
        interaction_cls=modules.interaction_classes[layout["later"]],
        interaction_cls_first=modules.interaction_classes[layout["first"]],
        num_interactions=layout["num_interactions"],
        num_elements=len(layout["elements"]),
        hidden_irreps=o3.Irreps(
            " + ".join(f"{layout['channels']}x{ir}" for ir in layout["hidden"].split(" + "))
        ),
        MLP_irreps=o3.Irreps(layout["MLP_irreps"]),
        atomic_energies=(energies if count > 1 else energies[0]).numpy(),
        avg_num_neighbors=layout["avg_num_neighbors"],
        atomic_numbers=layout["elements"],
        correlation=layout["correlation"],
        gate=torch.nn.functional.silu,
        pair_repulsion=layout.get("pair_repulsion", False),
        distance_transform=layout.get("distance_transform", "None"),
        radial_MLP=layout["radial_MLP"],
        atomic_inter_scale=[layout["scale"]] * count if count > 1 else layout["scale"],
        atomic_inter_shift=[layout["shift"]] * count if count > 1 else layout["shift"],
        heads=heads,
        **given,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            constant = parameter.numel() == 1 or bool((parameter == parameter.flatten()[0]).all())
            if constant or float(parameter.abs().max()) < 0.01:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def evaluate(model: Any, layout: dict[str, Any], case: dict[str, Any], atoms: Any) -> dict[str, np.ndarray]:
    """Energy, forces and, in a cell, stress of one structure."""
    import torch
    from mace import data, tools
    from mace.tools import torch_geometric

    table = tools.AtomicNumberTable(layout["elements"])
    item = data.AtomicData.from_config(data.config_from_atoms(atoms), z_table=table, cutoff=layout["r_max"])
    item.head = torch.tensor((layout.get("heads") or [""]).index(case["head"]) if "head" in case else 0)
    batch = next(iter(torch_geometric.dataloader.DataLoader([item], batch_size=1))).to_dict()
    if "charge" in case:
        batch["total_charge"] = torch.tensor([float(case["charge"])])
        batch["total_spin"] = torch.tensor([float(case["spin"])])
    out = model(batch, compute_stress=bool(atoms.pbc.any()))
    names = ("energy", "forces", "stress") if atoms.pbc.any() else ("energy", "forces")
    return {name: out[name].detach().squeeze(0).numpy() for name in names}


def write(folder: Path, name: str, layout: dict[str, Any], seed: int, *, fixture: bool) -> None:
    """One layout: its file and what it computes."""
    import torch
    from ase.data import chemical_symbols
    from structures import structures

    model = build_model(layout, seed)
    file = folder / f"{name}.model"
    torch.save(model, file)
    if fixture:
        file.with_suffix(".model.xz").write_bytes(lzma.compress(file.read_bytes(), preset=9))
        file.unlink()
    model.requires_grad_(False)  # the package adds embeddings to a view of its weights in place
    kept = {key: layout.get(key) for key in ("elements", "r_max", "cases")}
    arrays = {
        "config": np.array(json.dumps(kept)),
        "species": np.array([chemical_symbols[n] for n in layout["elements"]]),
    }
    for structure, atoms in structures().items():
        for key in ("numbers", "positions", "pbc"):
            arrays[f"{structure}/{key}"] = getattr(atoms, key)
        arrays[f"{structure}/cell"] = atoms.cell.array
    for dtype in ("float64",) if fixture else ("float64", "float32"):
        torch.set_default_dtype(getattr(torch, dtype))  # mace-torch computes and makes its modules in it
        model = model.to(getattr(torch, dtype))
        for index, case in enumerate(layout.get("cases", [{}])):
            for structure, atoms in structures().items():
                for key, value in evaluate(model, layout, case, atoms).items():
                    prefix = f"{index}/" if fixture else f"{dtype}/{index}/"
                    arrays[f"{prefix}{structure}/{key}"] = value
        torch.set_default_dtype(torch.float64)
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{name}: {count} parameters", flush=True)


def compare(folder: Path, name: str, layout: dict[str, Any]) -> None:
    """One row of the table: the largest deviations, relative to the largest value, in both precisions."""
    import torch

    from pimlip_zoo.datasets.frame import Frame
    from pimlip_zoo.datasets.neighbours import frame_to_sample
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.foundation.mace_torch import import_potential
    from pimlip_zoo.graph import stress_from_virial

    stored = dict(np.load(folder / f"{name}.npz"))
    worst = {"float64": 0.0, "float32": 0.0}
    count = 0
    try:
        for index, case in enumerate(layout.get("cases", [{}])):
            potential = import_potential(folder / f"{name}.model", head=case.get("head"))
            states = (case["charge"], case["spin"] - 1) if "charge" in case else None
            count = sum(parameter.numel() for parameter in potential.model.parameters())
            for dtype in tuple(worst):
                potential.set_dtype(getattr(torch, dtype))
                for structure in sorted({key.split("/")[0] for key in stored if key.endswith("/numbers")}):
                    keys = ("numbers", "positions", "cell", "pbc")
                    frame = Frame(**{key: stored[f"{structure}/{key}"] for key in keys})
                    graph = frame_to_sample(frame, potential.species, potential.cutoff).graph
                    if states is not None:
                        graph = graph._replace(electrons=torch.tensor([states], dtype=torch.float64))
                    with torch.no_grad():
                        result = potential(graph)
                    apart = float(potential.energy_references[graph.species].sum())
                    ours = {"energy": result.energy[0] - apart, "forces": result.forces}
                    prefix = f"{dtype}/{index}/{structure}/"
                    if f"{prefix}stress" in stored:
                        ours["stress"] = stress_from_virial(result.virial, graph.cell)[0]
                    for key, value in ours.items():
                        theirs = stored[prefix + key] - (apart if key == "energy" else 0.0)
                        largest = np.abs(theirs).max()
                        if (
                            key == "energy" and dtype == "float32"
                        ):  # the package rounds the sum with the atoms apart
                            largest = abs(float(stored[prefix + key]))
                        deviation = np.abs(value.detach().numpy() - theirs).max() / largest
                        worst[dtype] = max(worst[dtype], float(deviation))
    except InputError as error:
        print(f"| {name} | refused: {error.message} | | |", flush=True)
        return
    print(f"| {name} | {count} | {worst['float64']:.1e} | {worst['float32']:.1e} |", flush=True)


def main() -> None:
    action, folder, names = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    layouts = FIXTURES if action == "fixtures" else LAYOUTS
    for seed, (name, layout) in enumerate(layouts.items()):
        if names and name not in names:
            continue
        if action == "compare":
            compare(folder, name, layout)
        else:
            write(folder, name, layout, 40 + seed, fixture=action == "fixtures")


if __name__ == "__main__":
    if sys.argv[1] != "compare":
        import mace  # noqa: F401  (before e3nn: it lets that load its constants)
        import torch

        torch.set_default_dtype(torch.float64)  # mace-torch makes its modules in it
    main()
