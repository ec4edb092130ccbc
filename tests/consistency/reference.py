"""The numbers that consistency losses had before they got a folder of their own, and how they are computed again.

    python tests/consistency/reference.py      (writes reference.json; only where numbers are meant to change)

Values and gradients of every residual on surfaces of closed form; losses, gradients and trainings of a few steps of a
small NequIP in float64 for each preset and option. Vectors as long as a model are kept as projections.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from surfaces import SKEWED, Morse, Swirl, batch_of, mixed_batch, molecule, potential

FILE = Path(__file__).with_name("reference.json")

RESIDUALS = (
    "pitc_first_order",
    "pitc_trapezoid",
    "pitc_midpoint",
    "pitc_central",
    "pisc_triangle",
    "pisc_two_estimates",
    "loop_trapezoid",
    "loop_simpson",
    "anchor_first_order",
    "anchor_trapezoid",
    "taylor_augmentation",
    "taylor_central",
)
STRAINS = ("strain_first_order", "strain_trapezoid")
SURFACES = {"morse": Morse, "swirl": lambda: Swirl(0.4)}

HEAVY = 3e3
"""On weights that nobody has trained the surfaces are nearly flat: so that consistency counts beside the labels."""

DENOISING = {"weak.terms.denoising.weight": 0.01, "weak.perturbation.name": "gaussian"}
LOSSES: dict[str, dict[str, object]] = {
    "plain": {},
    "piwsl": {"weak.preset": "piwsl"},
    "direct-consistent": {"weak.preset": "direct-consistent"},
    "taylor": {"weak.preset": "taylor"},
    "noisy-nodes": {
        "weak.terms.noisy_labels.weight": 0.1,
        "weak.perturbation.name": "gaussian",
        "weak.perturbation.amplitude": 0.01,
    },
    "denoising": DENOISING,
    "stiffer denoising": {**DENOISING, "weak.terms.denoising.options": {"stiffness": 7.0}},
    **{name: {f"weak.terms.{name}.weight": HEAVY} for name in (*RESIDUALS, *STRAINS)},
    "per atom": {"weak.terms.pitc_trapezoid.weight": HEAVY, "weak.terms.pitc_trapezoid.unit": "per_atom"},
    "energies detached": {
        "weak.terms.pitc_central.weight": HEAVY,
        "weak.terms.pitc_central.detach": "energies",
    },
    "two": {"weak.terms.pitc_first_order.weight": HEAVY, "weak.terms.pisc_triangle.weight": HEAVY},
    "strain and pitc": {
        "weak.terms.strain_first_order.weight": HEAVY,
        "weak.terms.pitc_central.weight": HEAVY,
        "weak.strain": 0.02,
    },
    "teacher": {"weak.terms.pitc_trapezoid.weight": HEAVY, "weak.teacher": "ema"},
    "fraction": {"weak.terms.pitc_trapezoid.weight": HEAVY, "weak.fraction": 0.5},
    "fraction, labels": {"weak.terms.taylor_central.weight": HEAVY, "weak.fraction": 0.5},
    **{
        f"displaced {name}": {
            "weak.terms.pitc_central.weight": HEAVY,
            "weak.perturbation.name": name,
            "weak.perturbation.amplitude": 0.03,
        }
        for name in ("gaussian", "sphere", "force_error", "stiff", "soft")
    },
    "one iteration": {
        "weak.terms.pitc_central.weight": HEAVY,
        "weak.perturbation.name": "stiff",
        "weak.perturbation.iterations": 1,
    },
    "species": {"weak.terms.pitc_central.weight": HEAVY, "weak.perturbation.species": {"H": 1.5}},
    "local": {"weak.terms.pitc_central.weight": HEAVY, "weak.perturbation.local_radius": 2.0},
    "energies only": {"weak.terms.anchor_trapezoid.weight": HEAVY, "data.labels": ["energy"]},
}
DIRECT = (
    "plain",
    "piwsl",
    "direct-consistent",
    "noisy-nodes",
    "denoising",
    "energies detached",
    "two",
    "teacher",
    "displaced force_error",
    "energies only",
)
TRAININGS: dict[str, dict[str, object]] = {
    "piwsl": {"weak.preset": "piwsl"},
    "direct-consistent": {"weak.preset": "direct-consistent", "model.force_head": "direct"},
    "curl": {"weak.terms.curl.weight": 10.0, "model.force_head": "direct"},
    "teacher, warm-up": {
        "weak.terms.pitc_trapezoid.weight": HEAVY,
        "weak.terms.pitc_trapezoid.schedule": {"name": "warm_up", "start": 1, "steps": 2},
        "weak.teacher": "ema",
        "weak.teacher_decay": 0.5,
    },
    "decay": {
        "weak.terms.pitc_first_order.weight": HEAVY,
        "weak.terms.pisc_triangle.weight": HEAVY,
        "weak.terms.pitc_first_order.schedule": {"name": "decay", "steps": 3},
        "weak.fraction": 0.7,
    },
    "strain": {"weak.terms.strain_trapezoid.weight": HEAVY, "weak.terms.pitc_central.weight": HEAVY},
    "modes": {"weak.terms.pitc_central.weight": HEAVY, "weak.perturbation.name": "stiff"},
}


def structures(periodic: bool) -> tuple[list, list]:
    """Training and validation structures; all in a cell, or of both kinds."""
    frames = [molecule(4 + s % 3, s, SKEWED if periodic or s % 2 else None) for s in range(8)]
    return frames[:6], frames[6:]


def configuration(options: dict[str, object]):
    from pimlip_zoo.config import load_config

    common = {
        "data.train": "given",
        "data.valid": "given",
        "data.energy_references": "least_squares",
        "data.check_references": False,
        "data.batch_size": 3,
        "model.name": "nequip",
        "model.preset": "small",
        "model.channels": 4,
        "model.l_max": 1,
        "model.radial_hidden": [4],
        "model.cutoff": 4.0,
        "trainer.dtype": "float64",
        "trainer.device": "cpu",
        "trainer.max_steps": 4,
        "trainer.valid_every": 4,
        "trainer.tensorboard": False,
        "optimizer.name": "adamw",
        "optimizer.lr": 0.01,
    }
    return load_config(None, list((common | options).items()))


def prepared(options: dict[str, object], unlabelled: Path | None = None):
    from pimlip_zoo.experiment import prepare

    periodic = any("strain" in key for key in options)
    if unlabelled is not None:
        options = {**options, "weak.unlabelled": str(unlabelled), "weak.unlabelled_batch_size": 2}
    return prepare(configuration(options), split=structures(periodic))


def projected(vector: torch.Tensor) -> np.ndarray:
    """Four numbers that change when any component does."""
    generator = torch.Generator().manual_seed(len(vector))
    directions = torch.randn(4, len(vector), generator=generator, dtype=torch.float64)
    return (directions @ vector.detach().to(torch.float64) / len(vector) ** 0.5).numpy()


def of_residuals(residual, strained, curl) -> dict[str, np.ndarray]:
    """Values (M,) and the gradient of their squares' sum by the parameters, for each surface.

    Args:
        residual: ``(model, name, batch, d, p)`` -> (M,).
        strained: ``(model, name, batch, strain)`` -> (M,).
        curl: ``(model, batch, v)`` -> (N, 3).
    """
    from pimlip_zoo.graph import sum_by_structure

    found = {}
    for surface, make in SURFACES.items():
        model, batch = potential(make()), mixed_batch()
        crystals = batch_of([molecule(5 + s, s, SKEWED) for s in range(3)], 4.8)
        noise = torch.randn(2, len(batch.graph.positions), 3, generator=torch.Generator().manual_seed(1))
        d, p = 0.03 * noise.to(torch.float64)
        root = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(2)).to(torch.float64)
        strain = 0.004 * (root + root.transpose(1, 2))
        parameters = list(model.model.parameters())

        def keep(name, value, surface=surface, parameters=parameters):
            found[f"residual/{surface}/{name}"] = value.detach().numpy()
            gradient = torch.autograd.grad((1e3 * value).square().sum(), parameters, allow_unused=True)
            found[f"gradient/{surface}/{name}"] = np.array([0.0 if g is None else float(g) for g in gradient])

        for name in RESIDUALS:
            keep(name, residual(model, name, batch, d, p))
        for name in STRAINS:
            keep(name, strained(model, name, crystals, strain))
        if model.is_direct:
            keep("curl", sum_by_structure(curl(model, batch, d).square().sum(dim=1), batch.graph))
    return found


def of_losses(unlabelled: Path) -> dict[str, np.ndarray]:
    """Total loss and the gradient of each case, with both heads and with unlabelled structures."""
    from pimlip_zoo.experiment.run import training_module
    from pimlip_zoo.graph import collate

    found = {}
    cases = [(name, {}, None) for name in LOSSES]
    cases += [(name, {"model.force_head": "direct"}, None) for name in DIRECT]
    cases += [(name, {}, unlabelled) for name in ("direct-consistent", "taylor", "fraction", "two")]
    cases += [("strain and pitc", {}, unlabelled), ("displaced stiff", {}, unlabelled)]
    for name, head, pool in cases:
        experiment = prepared({**LOSSES[name], **head}, pool)
        module = training_module(experiment).train()
        total, *_ = module.loss(collate(experiment.train[:3]))
        total.backward()
        gradient = [p.grad for p in experiment.potential.parameters() if p.grad is not None]
        key = "/".join(["loss", name, *head.values(), *(["unlabelled"] if pool else [])])
        found[key] = np.append(projected(torch.cat([g.flatten() for g in gradient])), total.item())
    return found


def of_trainings(folder: Path) -> dict[str, np.ndarray]:
    """The weights after four steps."""
    from pimlip_zoo.experiment.run import train

    found = {}
    for index, (name, options) in enumerate(TRAININGS.items()):
        experiment = prepared(options)
        train(experiment, folder / str(index))
        weights = [p.flatten() for p in experiment.potential.parameters()]
        found[f"training/{name}"] = projected(torch.cat(weights))
    return found


def unlabelled_file(folder: Path) -> Path:
    """Structures without labels, all in a cell."""
    from ase.io import write

    from pimlip_zoo.datasets.frame import frame_to_atoms

    path = folder / "unlabelled.extxyz"
    atoms = [frame_to_atoms(molecule(5, s, SKEWED)) for s in range(20, 24)]
    for structure in atoms:
        structure.calc = None
        structure.arrays.pop("forces", None)
    write(path, atoms)
    return path


def of_surfaces() -> dict[str, np.ndarray]:
    """Of every residual, through the two methods that a potential has for them."""
    return of_residuals(
        lambda model, name, batch, d, p: model.residual(name, batch.graph, d, p, labels=batch.labels),
        lambda model, name, batch, strain: model.residual(name, batch.graph, strain=strain),
        lambda model, batch, v: model.surface(batch.graph, direction=v).curl(),
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        numbers = of_surfaces() | of_losses(unlabelled_file(Path(name))) | of_trainings(Path(name))
    lines = [f"{json.dumps(key)}: {json.dumps(value.tolist())}" for key, value in numbers.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
