"""Whether `weak advise` says of the study's sets what the study found.

    python benchmarks/weak/advice.py --root data                (CHGNet has to be installed for solids and water)
    python benchmarks/weak/advice.py --root data --set acac --steps 250
    python benchmarks/weak/advice.py --root data --set mlearn_Si --calculator chgnet-labels.extxyz

One row for each case: what was measured, the advice, the study's outcome.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sets import CHGNET

CASES = {
    "acac": ("acac/train_300K.extxyz", "gfn2", False, "helps"),
    "acac-energies": ("acac/train_300K.extxyz", "gfn2", True, "helps"),
    "rmd17_aspirin": ("rmd17_aspirin/train_50.extxyz", "gfn2", False, "helps"),
    "tio2": ("tio2_aenet1000/train_800.extxyz", CHGNET, False, "delta helps"),
    "tio2-energies": ("tio2_aenet1000/train_800.extxyz", CHGNET, True, "helps"),
    "mlearn_Si": ("mlearn_Si/train.extxyz", CHGNET, False, "harms"),
    "cual": ("builtin:cual-emt", "ase.calculators.lj:LennardJones", False, "not measured"),
    "deepmd_water": ("deepmd_water/train_data_0.extxyz", CHGNET, False, "harms"),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--set", choices=list(CASES))
    parser.add_argument("--calculator")
    parser.add_argument("--structures", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()

    from dataclasses import replace

    import numpy as np

    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.experiment.advice import advise, labels_of_level

    print(
        "| case | structures | labels, left | minus level, left | ratio, short | ratio | expected | roughness ",
        end="",
    )
    print("| CPU s | advice | study |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, (file, calculator, energies, outcome) in CASES.items():
        if args.set not in (None, name):
            continue
        level = args.calculator or calculator
        path = file if file.startswith("builtin:") else str(args.root / file)
        frames = load_frames(path)
        if Path(level).is_file():  # those of the set that the file has
            have = {frame.positions.round(3).tobytes() for frame in load_frames(level)}
            frames = [frame for frame in frames if frame.positions.round(3).tobytes() in have]
        order = np.random.default_rng(0).permutation(len(frames))[: args.structures]
        frames = [frames[i] for i in order]
        cheap = labels_of_level(level, frames)
        if energies:
            frames = [replace(frame, forces=None) for frame in frames]
        began = time.process_time()
        advice = advise(frames, {level: cheap}, steps=args.steps, settings=[("trainer.device", "cpu")])
        (found,) = advice.findings
        quantity = "energies" if energies else "forces"
        numbers = [
            getattr(errors, quantity)
            for errors in (advice.surface, advice.plain, found.difference, found.learnt)
        ]
        shown = [f"{1e3 * value:.4g}" for value in numbers]
        print(
            f"| {name} | {advice.structures} | {shown[0]}, {shown[1]} | {shown[2]}, {shown[3]} | {found.early:.2f} "
            f"| {found.ratio:.2f} | {found.expected:.2f} [{found.low:.2f}, {found.high:.2f}] | {found.roughness:.2f} "
            f"| {time.process_time() - began:.0f} | {found.recipe or 'none'} | {outcome} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
