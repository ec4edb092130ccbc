"""What fine-tuned potentials say of a crystal, beside their errors: lattice, elasticity, a vacancy, hot dynamics.

    python benchmarks/weak/foundation_study.py run mlearn_Si --model runs/7net-0 --sizes 50 --keep-runs ...
    python benchmarks/weak/foundation_physics.py run mlearn_Si zero-shot=runs/7net-0 \
        finetune-50=runs/foundation/mlearn_Si/7net-0/finetune-50-seed0 --root data
    python benchmarks/weak/foundation_physics.py docs             (the table of docs/results/foundation-study.md)

Each potential is a line in results/foundation-physics.jsonl; what is there is not computed again. Lattice constant and
elastic constants of the labels are read off labelled cells that are stretched along one axis: central differences of
their stresses at the smallest strains. The set has no labels for relaxed vacancies; their energies stand side by side.
Dynamics: 64 atoms, NVT, see pimlip_zoo/deploy/stability.py for what ends them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from foundation_study import PAGE, number, placed
from sets import SETS
from tables import between

RESULTS = Path(__file__).parent / "results" / "foundation-physics.jsonl"
CRYSTALS = {"mlearn_Si": ("Si", 5.43), "mlearn_Ge": ("Ge", 5.66)}
"""Element and a lattice constant, Å, of sets with stretched cells of 64 atoms."""
PROPERTIES = ("lattice", "elastic", "vacancy")
TEMPERATURE, STEPS, TIMESTEP = 1000.0, 5000, 1.0
"""K, number, fs."""
COLUMNS = {
    "a": ("lattice.a", "a, Å"),
    "c11": ("elastic.C11", "C11, GPa"),
    "c12": ("elastic.C12", "C12, GPa"),
    "c44": ("elastic.C44", "C44, GPa"),
    "vacancy": ("vacancy.formation_energy", "vacancy, eV"),
}


def run(args):
    """Measure what is not there yet."""
    element, _ = CRYSTALS[args.set]
    rows = read(args.out)
    for item in ["labels=", *args.potentials]:
        name, _, potential = item.partition("=")
        if any(row["set"] == args.set and row["name"] == name for row in rows):
            continue
        values = (
            of_labels(args) if name == "labels" else {**crystal(potential, element), **hot(args, potential)}
        )
        row = {"set": args.set, "name": name, **values}
        print(row, flush=True)
        with args.out.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
    return 0


def of_labels(args):
    """Lattice constant, C11 and C12 of the labels themselves, from cells that are stretched along one axis."""
    import numpy as np

    from pimlip_zoo.datasets.readers import load_frames

    study = SETS[args.set]
    stretched = []
    for spec in filter(None, (study.train, study.valid, *study.tests)):
        for frame in load_frames(placed(args, spec)):
            lengths = np.linalg.norm(frame.cell, axis=1)
            upright = np.allclose(frame.cell, np.diag(lengths), atol=1e-6)
            if not upright or frame.stress is None or np.abs(frame.forces).max() > 1e-3:
                continue
            middle = float(np.median(lengths))
            axis = int(np.argmax(np.abs(lengths - middle)))
            rest = np.delete(lengths, axis)
            if len(frame.numbers) == 64 and np.isclose(*rest, atol=1e-3):
                stress = np.diag(frame.stress) * 160.21766
                along, across = stress[axis], np.delete(stress, axis).mean()
                stretched.append((round(lengths[axis] / middle - 1, 4), along, across, middle / 2))
    middle = stretched[0][3]
    below = max(one for one in stretched if one[0] < 0)
    above = min(one for one in stretched if one[0] > 0)
    width = above[0] - below[0]
    c11, c12 = ((above[k] - below[k]) / width for k in (1, 2))
    # The stress at no strain, by a line between the two, says how far the middle is from the minimum.
    left = [below[k] + (above[k] - below[k]) * -below[0] / width for k in (1, 2)]
    pressure = (left[0] + 2 * left[1]) / 3
    return {"a": middle * (1 - pressure / (c11 + 2 * c12)), "c11": c11, "c12": c12}


def crystal(potential, element):
    """Values of `pimlip-zoo eval --physics`."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "physics.json"
        command = [sys.executable, "-m", "pimlip_zoo", "eval", str(potential), "--physics"]
        command += [
            "--structure",
            f"bulk:{element}",
            "--properties",
            ",".join(PROPERTIES),
            "--json",
            str(file),
        ]
        subprocess.run(command, check=True)
        found = json.loads(file.read_text())["structures"][f"bulk:{element}"]["properties"]
    values = {}
    for column, (path, _) in COLUMNS.items():
        measured, _, quantity = path.partition(".")
        values[column] = found[measured].get("values", {}).get(quantity, {}).get("value")
    return values


def hot(args, potential):
    """How long dynamics lasts, ps, and what ended it."""
    from ase.build import bulk

    import pimlip_zoo
    from pimlip_zoo.deploy.md import MDSettings, run_md

    element, length = CRYSTALS[args.set]
    atoms = bulk(element, a=length, cubic=True).repeat(2)
    atoms.calc = pimlip_zoo.calculator(potential)
    settings = MDSettings(temperature=TEMPERATURE, steps=STEPS, timestep=TIMESTEP, seed=0, interval=100)
    with tempfile.TemporaryDirectory() as scratch:
        result = run_md(atoms, settings, Path(scratch) / "md")
    return {"stable": result.stable, "ps": result.time_fs / 1000, "verdict": result.verdict}


def read(file):
    """The rows that are there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def docs(args):
    """Write the tables into the page."""
    page, rows = args.page.read_text(), read(args.out)
    for name in CRYSTALS:
        found = [row for row in rows if row["set"] == name]
        if found:
            page = between(page, f"foundation physics {name}", table_of(found))
    args.page.write_text(page)
    return 0


def table_of(rows):
    """A line for each potential."""
    heads = [head for _, head in COLUMNS.values()]
    lines = [
        "| potential | " + " | ".join(heads) + f" | dynamics at {TEMPERATURE:.0f} K |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for row in rows:
        cells = [
            "" if row.get(key) is None else f"{row[key]:.3f}" if key == "a" else number(row[key])
            for key in COLUMNS
        ]
        lasted = (
            ""
            if "ps" not in row
            else f"{row['ps']:.3g} ps" + ("" if row["stable"] else f": {row['verdict']}")
        )
        lines.append("| " + " | ".join([row["name"], *cells, lasted]) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    written = commands.add_parser("docs")
    written.set_defaults(function=docs)
    written.add_argument("--page", type=Path, default=PAGE)
    command = commands.add_parser("run")
    command.set_defaults(function=run)
    command.add_argument("set", choices=list(CRYSTALS))
    command.add_argument("potentials", nargs="*", metavar="NAME=RUN")
    command.add_argument("--root", default="data")
    for each in (written, command):
        each.add_argument("--out", type=Path, default=RESULTS, help="the file of the results")
    args = parser.parse_args()
    sys.exit(args.function(args))


if __name__ == "__main__":
    main()
