"""Reference energies alone, and GFN2 as a second level of theory with a readout of its own: what it teaches.

    python benchmarks/weak/several_levels.py --root data --out runs/levels      (50 labels of acetylacetone)
    python benchmarks/weak/several_levels.py --out runs/levels --docs           (what is there, into the documentation)

`--root` is the folder of `sets.py`. Each run is done once: a second call goes on. Errors are those of the reference
level's readout.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sets import SETS
from tables import between

DOCS = Path(__file__).parents[2] / "docs" / "results" / "weak-supervision.md"
ENERGIES = {"data.labels": ["energy"]}


def ways(steps, cheap):
    """Name -> settings beside those that all have."""
    pretrain = {"weak.preset": "gfn2", "weak.labels.calculator": cheap, "weak.labels.steps": steps}

    def level(*quantities, **more):
        return {"weak.levels": [{"calculator": cheap, "quantities": list(quantities), **more}]}

    return {
        "energies": ENERGIES,
        "energies, twice as long": {**ENERGIES, "trainer.max_steps": 2 * steps},
        f"{cheap} forces as a second level": {**ENERGIES, **level("forces")},
        f"{cheap} energies and forces as a second level": {**ENERGIES, **level("energy", "forces")},
        f"pre-trained on {cheap}, then energies": {**ENERGIES, **pretrain},
        "energies and forces": {},
        f"energies and forces, {cheap} as a second level": level("energy", "forces"),
        f"energies and forces, pre-trained on {cheap}": pretrain,
    }


def settings_of(chosen, args, way):
    """The whole configuration of a run."""
    pool = {"structures": chosen.pool, "timestep": chosen.timestep, "stride": chosen.stride}
    weak = {f"weak.labels.pool.{key}": value for key, value in pool.items()} if "weak" in str(way) else {}
    return {
        "data.train": f"{args.root}/{chosen.train.partition('@')[0]}@0:{args.labels}",
        "data.valid": f"{args.root}/{chosen.valid}",
        "data.batch_size": chosen.batch_size,
        "model.name": "nequip",
        "model.preset": "small",
        "trainer.max_steps": args.steps,
        "trainer.valid_every": 500,
        "trainer.device": "cpu",
        "seed": args.seed,
        **weak,
        **way,
    }


def folder_of(args, name):
    """Of a row's run."""
    return Path(args.out) / name.replace(" ", "-").replace(",", "")


def carry_out(chosen, args, name, way):
    """One run and its errors; it is not repeated when they are there."""
    import pimlip_zoo
    from pimlip_zoo.evaluation import evaluate

    folder = folder_of(args, name)
    file = folder / "errors.json"
    if file.exists():
        return json.loads(file.read_text())
    begun = time.process_time()
    resume = any(folder.glob("**/checkpoints/last.ckpt"))
    pimlip_zoo.train(settings_of(chosen, args, way), out=folder, resume=resume)
    rows, seconds = {}, time.process_time() - begun
    for test in chosen.tests:
        summary = evaluate(pimlip_zoo.load(folder), f"{args.root}/{test}@::{args.every}").summary
        rows[Path(test).stem] = [
            1e3 * summary["energy_per_atom"]["rmse"],
            1e3 * summary["forces"]["rmse"],
        ]
    result = {"errors": rows, "seconds": None if resume else seconds}
    file.write_text(json.dumps(result))
    return result


def table(results, tests):
    """In Markdown."""
    short = [Path(test).stem.removeprefix("test_MD_") for test in tests]
    heads = [f"{head}, {name}" for name in short for head in ("E meV per atom", "F meV/Å")]
    lines = [f"| training | {' | '.join(heads)} | CPU s |", "|---" * (len(heads) + 2) + "|"]
    for name, result in results.items():
        errors = [result["errors"][Path(test).stem] for test in tests]
        numbers = [cell for energy, forces in errors for cell in (f"{energy:.1f}", f"{forces:.0f}")]
        seconds = "" if result["seconds"] is None else f"{result['seconds']:.0f}"
        lines.append(f"| {name} | {' | '.join(numbers)} | {seconds} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="data")
    parser.add_argument("--out", default="runs/levels")
    parser.add_argument("--set", choices=["acac", "rmd17_aspirin"], default="acac")
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--every", type=int, default=3, help="every how manieth test structure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the rows, from 0")
    parser.add_argument("--docs", action="store_true", help="train nothing; write the table of what is there")
    args = parser.parse_args()

    chosen, results = SETS[args.set], {}
    for number, (name, way) in enumerate(ways(args.steps, chosen.cheap).items()):
        wanted = args.only is None or number in args.only
        if args.docs and not (folder_of(args, name) / "errors.json").exists():
            continue
        if wanted:
            results[name] = carry_out(chosen, args, name, way)
    text = table(results, chosen.tests)
    print(text)
    if args.docs:
        page = DOCS.read_text(encoding="utf-8")
        DOCS.write_text(between(page, f"levels {args.set}", text.splitlines()), encoding="utf-8")


if __name__ == "__main__":
    main()
