"""How long molecular dynamics with trained potentials lasts: NVE and NVT, at several temperatures, several seeds.

    python benchmarks/weak/stability.py --structure data/acac/test_MD_300K.extxyz@0:1 --out stability-acac.csv \
        plain-50=runs/weak/conservative-acac-mace/plain-50-seed0 pretrain-50=pretrain-50.native

What is simulated is a run or an exported file (a native one is several times faster); NAME is what the table says. A
simulation ends when a bond leaves its physical length, atoms collapse, energy is not conserved (NVE) or the temperature
runs away; see pimlip_zoo/deploy/stability.py. What is finished is not repeated; the figures are kept in --out, the
trajectories in --runs.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path

from tables import stability_table


def simulate(potential, frame, folder, args, *, ensemble, temperature, seed):
    """What became of one simulation."""
    import pimlip_zoo
    from pimlip_zoo.datasets.frame import frame_to_atoms
    from pimlip_zoo.deploy.md import MDSettings, run_md

    result = folder / "result.json"
    if not result.exists():
        shutil.rmtree(folder, ignore_errors=True)
        atoms = frame_to_atoms(frame)
        atoms.calc = pimlip_zoo.calculator(potential)
        settings = MDSettings(
            ensemble=ensemble,
            temperature=temperature,
            steps=args.steps,
            timestep=args.timestep,
            seed=seed,
            interval=500,
        )
        run_md(atoms, settings, folder)
    found = json.loads(result.read_text())
    return {
        "ps": found["steps"] * args.timestep / 1000,
        "stable": found["stable"],
        "verdict": found["verdict"],
        "temperature_K": found["mean_temperature"],
        "drift_meV_per_atom_ps": found["energy_drift"],
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("potentials", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--structure", required=True, help="DATA; the first structure is simulated")
    parser.add_argument("--temperatures", default="300,500")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("stability.csv"), help="table of the figures")
    parser.add_argument("--runs", type=Path, default=Path("runs/stability"), help="folder of the simulations")
    args = parser.parse_args()

    from pimlip_zoo.datasets.readers import load_frames

    frame = load_frames(args.structure)[0]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    if args.out.exists():
        with args.out.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    for item in args.potentials:
        name, _, potential = item.partition("=")
        rows = [row for row in rows if row["potential"] != name]
        for seed in range(args.seeds):
            for ensemble in ("nve", "nvt"):
                for temperature in (float(t) for t in args.temperatures.split(",")):
                    setting = {"ensemble": ensemble, "temperature": temperature, "seed": seed}
                    folder = args.runs / f"{name}-{ensemble}-{temperature:.0f}K-seed{seed}"
                    found = simulate(potential, frame, folder, args, **setting)
                    rows.append({"potential": name, **setting, **found})
                    print(rows[-1], flush=True)
        with args.out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print("\n".join(stability_table(args.out)))


if __name__ == "__main__":
    main()
