"""mace-torch and nequip with their own training programs, on the sets and at the steps of ``recipes.py``.

Each in an environment of its own, torch first::

    python -m venv .peers/mace && .peers/mace/bin/pip install torch && .peers/mace/bin/pip install mace-torch==0.3.16
    python -m venv .peers/nequip && .peers/nequip/bin/pip install torch && .peers/nequip/bin/pip install nequip==0.19

    python benchmarks/recipes_peers.py frames --root DATA --set acac -o runs/peers/acac          (with pimlip-zoo)
    OMP_NUM_THREADS=1 .peers/mace/bin/python   benchmarks/recipes_peers.py mace   runs/peers/acac --steps 2000
    OMP_NUM_THREADS=1 .peers/nequip/bin/python benchmarks/recipes_peers.py nequip runs/peers/acac --steps 2000

``frames`` writes training, validation and test structures as extended XYZ. ``mace`` runs ``mace_run_train`` with its
defaults, EMA and stage two from three quarters of the epochs on, in float32; ``nequip`` runs ``nequip-train`` with the
recipe of its tutorial. Architectures are those of the small presets here. Errors are taken through ASE, and appended to
``benchmarks/results/recipes.jsonl``. CPU time is that of the training program, imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "recipes.jsonl"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    frames = commands.add_parser("frames", help="write the structures")
    frames.add_argument("--root", required=True)
    frames.add_argument("--set", required=True)
    frames.add_argument("--labels", default="all")
    frames.add_argument("--seed", type=int, default=0)
    frames.add_argument("-o", "--out", type=Path, required=True)
    for name in ("mace", "nequip"):
        command = commands.add_parser(name, help=f"train {name} and evaluate")
        command.add_argument("folder", type=Path)
        command.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    return {"frames": write_frames, "mace": train_mace, "nequip": train_nequip}[options.command](options)


def write_frames(options: argparse.Namespace) -> int:
    import ase.io
    import numpy as np
    from ase.calculators.singlepoint import SinglePointCalculator
    from recipes import drawn, placed, settings_of

    from pimlip_zoo.config import load_config
    from pimlip_zoo.datasets.readers import load_frames

    key = {
        "set": options.set,
        "labels": options.labels,
        "seed": options.seed,
        "model": "mace",
        "preset": "small",
        "recipe": "muon",  # any without displaced copies: it does not change which structures are drawn
    }
    study, settings = settings_of({**key, "steps": 1}, options.root)
    train, valid = drawn(load_config(None, list(settings.items())), key)
    options.out.mkdir(parents=True, exist_ok=True)
    tests = [load_frames(spec) for spec in [placed(options.root, test) for test in study.tests]]
    for name, members in [
        ("train", train),
        ("valid", valid),
        *((f"test{i}", t) for i, t in enumerate(tests)),
    ]:
        atoms = []
        for frame in members:
            one = ase.Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
            labels = {"energy": frame.energy, "forces": frame.forces}
            if frame.stress is not None:
                labels["stress"] = np.asarray(frame.stress)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            one.calc = SinglePointCalculator(one, **labels)
            atoms.append(one)
        ase.io.write(options.out / f"{name}.extxyz", atoms)
    # Their own energy references by least squares, as the runs here have them.
    symbols = sorted({s for frame in train for s in ase.Atoms(frame.numbers).get_chemical_symbols()})
    counts = np.array([[list(ase.Atoms(f.numbers).symbols).count(s) for s in symbols] for f in train])
    solution, *_ = np.linalg.lstsq(counts, np.array([f.energy for f in train]), rcond=1e-8)
    description = {
        **key,
        "tests": list(study.tests),
        "batch_size": study.batch_size,
        "references": dict(zip(symbols, solution.tolist(), strict=True)),
        "stress": any(frame.stress is not None for frame in train),
    }
    (options.out / "set.json").write_text(json.dumps(description, indent=1))
    return 0


def train_mace(options: argparse.Namespace) -> int:
    import ase.data
    import ase.io

    description = json.loads((options.folder / "set.json").read_text())
    structures, batch = len(ase.io.read(options.folder / "train.extxyz", ":")), description["batch_size"]
    per_epoch = structures // batch  # its loader drops the last, smaller batch
    epochs = max(round(options.steps / per_epoch), 4)
    references = {ase.data.atomic_numbers[s]: e for s, e in description["references"].items()}
    # mace-torch reads labels under names that ASE does not take for results.
    for part in ("train", "valid"):
        frames = ase.io.read(options.folder / f"{part}.extxyz", ":")
        for atoms in frames:
            atoms.info["REF_energy"], atoms.arrays["REF_forces"] = (
                atoms.get_potential_energy(),
                atoms.get_forces(),
            )
            if description["stress"] and "stress" in atoms.calc.results:  # without: of weight zero
                atoms.info["REF_stress"] = atoms.get_stress(voigt=False).flatten()
            atoms.calc = None
        ase.io.write(options.folder / f"{part}-mace.extxyz", frames)
    name = f"mace-{options.steps}"
    arguments = {
        "name": name,
        "work_dir": options.folder / name,
        "train_file": options.folder / "train-mace.extxyz",
        "valid_file": options.folder / "valid-mace.extxyz",
        "E0s": str(references),  # read as a Python literal
        "num_channels": 32,
        "max_L": 1,
        "r_max": 5.0,
        "default_dtype": "float32",
        "batch_size": batch,
        "max_num_epochs": epochs,
        "start_swa": round(0.75 * epochs),
        "eval_interval": max(epochs // 24, 1),
        "device": "cpu",
        "seed": description["seed"],
    }
    if description["stress"]:
        arguments |= {"loss": "stress", "compute_stress": True}
    command = [str(Path(sys.executable).parent / "mace_run_train"), "--ema", "--swa"]
    command += [f"--{key}={value}" for key, value in arguments.items()]
    run(command, options.folder / name)
    from mace.calculators import MACECalculator

    (model,) = (options.folder / name).glob(f"{name}_stagetwo.model")
    calculator = MACECalculator(model_paths=str(model), device="cpu", default_dtype="float32")
    return keep(
        options, description, "mace", "mace_run_train", epochs * per_epoch, calculator, options.folder / name
    )


def train_nequip(options: argparse.Namespace) -> int:
    import ase.io
    import yaml

    description = json.loads((options.folder / "set.json").read_text())
    folder = options.folder.resolve() / f"nequip-{options.steps}"
    folder.mkdir(parents=True, exist_ok=True)
    symbols = list(description["references"])
    # With labels that are not a number, and told to ignore them, its weights become none either, and it refuses batches
    # in which some have none: where some structures (slabs) have no stress, it is trained without.
    parts = {part: ase.io.read(options.folder / f"{part}.extxyz", ":") for part in ("train", "valid")}
    frames = [atoms for part in parts.values() for atoms in part]
    stress = description["stress"] = all("stress" in atoms.calc.results for atoms in frames)
    for part, members in parts.items():
        for atoms in members if not stress else ():
            atoms.calc.results.pop("stress", None)
        ase.io.write(folder / f"{part}.extxyz", members)
    loss = {"total_energy": 1.0, "forces": 1.0}
    metrics = {"total_energy_mae": 1.0, "forces_mae": 1.0}
    kind = "EnergyForceStress" if stress else "EnergyForce"
    if stress:
        loss["stress"], metrics["stress_mae"] = 1.0, 1.0
    statistics = "${training_data_stats:%s}"
    model = {
        "_target_": "nequip.model.NequIPGNNModel",
        "seed": description["seed"],
        "model_dtype": "float32",
        "type_names": symbols,
        "r_max": 5.0,
        "num_bessels": 8,
        "polynomial_cutoff_p": 6,
        "num_layers": 2,
        "l_max": 2,
        "parity": False,
        "num_features": 32,
        "radial_mlp_depth": 1,
        "radial_mlp_width": 64,
        "avg_num_neighbors": statistics % "num_neighbors_mean",
        "per_type_energy_scales": statistics % "forces_rms",
        "per_type_energy_shifts": description["references"],
    }
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": description["batch_size"]}
    metric = {"_target_": f"nequip.train.{kind}Metrics", "coeffs": metrics}
    monitored = "val0_epoch/weighted_sum"
    content = {
        "run": ["train"],
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": description["seed"],
            "train_file_path": str(folder / "train.extxyz"),
            "val_file_path": str(folder / "valid.extxyz"),
            "test_file_path": [],
            "transforms": [
                {
                    "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
                    "model_type_names": symbols,
                },
                {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": 5.0},
            ],
            "train_dataloader": {**loader, "shuffle": True},
            "val_dataloader": {**loader, "batch_size": 10},
            "stats_manager": {
                "_target_": "nequip.data.CommonDataStatisticsManager",
                "dataloader_kwargs": {"batch_size": 10},
                "type_names": symbols,
            },
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "accelerator": "cpu",
            "max_steps": options.steps,
            "max_epochs": -1,
            "check_val_every_n_epoch": 1,
            "enable_progress_bar": False,
            "logger": False,
            "callbacks": [
                {
                    "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "monitor": monitored,
                    "dirpath": str(folder),
                    "filename": "best",
                    "enable_version_counter": False,
                },
            ],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "ema_decay": 0.999,
            "loss": {
                "_target_": f"nequip.train.{kind}Loss",
                "per_atom_energy": True,
                "coeffs": loss,
            },
            "val_metrics": metric,
            "train_metrics": metric,
            "test_metrics": metric,
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
            "lr_scheduler": {
                "scheduler": {
                    "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
                    "factor": 0.6,
                    "patience": 5,
                    "threshold": 0.2,
                    "min_lr": 1e-6,
                },
                "monitor": monitored,
                "interval": "epoch",
                "frequency": 1,
            },
            "model": model,
        },
        "global_options": {"allow_tf32": False},
    }
    (folder / "tutorial.yaml").write_text(yaml.safe_dump(content))
    binary = str(Path(sys.executable).parent / "nequip-train")
    run([binary, "-cp", str(folder), "-cn", "tutorial", f"hydra.run.dir={folder}"], folder)
    from nequip.ase import NequIPCalculator

    calculator = NequIPCalculator._from_saved_model(  # noqa: SLF001  (its only way to evaluate a checkpoint uncompiled)
        str(folder / "best.ckpt"), device="cpu", chemical_species_to_atom_type_map={s: s for s in symbols}
    )
    return keep(options, description, "nequip", "nequip-train", options.steps, calculator, folder)


def run(command: list[str], folder: Path) -> None:
    """Train, unless that is done; a file keeps the CPU time."""
    done = folder / "cpu_seconds"
    if done.exists():
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    done.write_text(str(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))


def spread(values: list) -> dict[str, float]:
    """Errors in eV and Å as meV and meV/Å."""
    import numpy as np

    flat = np.concatenate([np.atleast_1d(value) for value in values])
    return {
        "rmse": round(1e3 * float(np.sqrt(np.mean(flat**2))), 4),
        "mae": round(1e3 * float(np.mean(np.abs(flat))), 4),
    }


def keep(options, description, model, recipe, steps, calculator, folder) -> int:
    """Evaluate through ASE and append a line."""
    import ase.io
    import numpy as np

    tests = {}
    for index, test in enumerate(description["tests"]):
        errors: dict[str, list] = {"energy_per_atom": [], "forces": [], "stress": []}
        for atoms in ase.io.read(options.folder / f"test{index}.extxyz", ":"):
            labels, copy = atoms.calc.results, atoms.copy()
            copy.calc = calculator
            errors["energy_per_atom"].append((copy.get_potential_energy() - labels["energy"]) / len(copy))
            errors["forces"].append((copy.get_forces() - labels["forces"]).flatten())
            if description["stress"] and "stress" in labels:
                full = (
                    np.array([1, 1, 1, 2, 2, 2]) ** 0.5
                )  # off-diagonal components count twice, as in the matrix
                errors["stress"].append((copy.get_stress() - labels["stress"]) * full * (6 / 9) ** 0.5)
        tests[test] = {quantity: spread(values) for quantity, values in errors.items() if values}
    row = {
        "set": description["set"],
        "labels": description["labels"],
        "model": model,
        "preset": "small",
        "recipe": recipe,
        "steps": options.steps,
        "seed": description["seed"],
        "cpu_s": round(float((folder / "cpu_seconds").read_text()), 1),
        "done_steps": steps,
        "curve": [],
        "tests": tests,
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
