"""How much of the reference a cheap calculator explains, before anything is trained on it.

    python benchmarks/weak/levels.py --root data                    (all sets with the study's calculators)
    python benchmarks/weak/levels.py --root data --set mlearn_Si --calculator supervisors:silicon_tersoff

Per set and calculator: root mean square of the reference forces, of the difference of the two levels, their
correlation, what a fitted offset per species leaves of the energies (standard deviation per atom), CPU time. Where the
difference is not smaller than the forces, differences are no easier to learn than the surface.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sets import CHGNET, SETS

SEVENNET = "sevenn.calculator:SevenNetCalculator"

CALCULATORS = {
    "acac": ("gfn2", "gfn1"),
    "rmd17_aspirin": ("gfn2",),
    "tio2": (CHGNET, SEVENNET, "gfn1"),
    "deepmd_water": (CHGNET,),
    "mlearn_Si": (CHGNET, SEVENNET, "supervisors:silicon_stillinger_weber", "supervisors:silicon_tersoff"),
}


def compare(frames, calculator):
    """The figures of one row."""
    import numpy as np

    from pimlip_zoo.datasets.statistics import species_of
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.weak_labels.calculators import find_cheap_calculator
    from pimlip_zoo.weak_labels.offsets import fit_offset
    from pimlip_zoo.weak_labels.pool import label_frames

    level, kept, cheap, failed = find_cheap_calculator(calculator, trust=True), [], [], 0
    started = time.process_time()
    for frame in frames:
        try:
            cheap += label_frames([frame], level)
            kept.append(frame)
        except InputError:
            failed += 1
    seconds = time.process_time() - started
    if not kept:
        return f"fails on all of {failed}"
    reference = np.concatenate([np.ravel(frame.forces) for frame in kept])
    other = np.concatenate([np.ravel(frame.forces) for frame in cheap])
    count = np.mean([len(frame.numbers) for frame in kept])
    offset = fit_offset(kept, cheap, species_of(kept))

    def rms(values):
        return 1e3 * float(np.sqrt(np.mean(np.square(values))))

    return (
        f"{len(kept)}{f' ({failed} failed)' if failed else ''} | {rms(reference):.0f} | "
        f"{rms(reference - other):.0f} | {np.corrcoef(reference, other)[0, 1]:.3f} | "
        f"{1e3 * offset.spread / count:.1f} | {1e3 * seconds / (len(kept) + failed):.1f}"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="data")
    parser.add_argument("--set", choices=list(CALCULATORS))
    parser.add_argument("--calculator")
    parser.add_argument("--structures", type=int, default=20)
    args = parser.parse_args()

    from pimlip_zoo.datasets.readers import load_frames

    print(
        "| set | calculator | structures | F meV/Å | difference | correlation | E offset leaves meV/atom | CPU ms |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in [args.set] if args.set else CALCULATORS:
        first = SETS[name].train.split(",")[0].partition("@")[0]
        frames = load_frames(f"{args.root}/{first}")
        frames = frames[:: max(1, len(frames) // args.structures)][: args.structures]
        for calculator in [args.calculator] if args.calculator else CALCULATORS[name]:
            print(f"| {name} | {calculator} | {compare(frames, calculator)} |", flush=True)


if __name__ == "__main__":
    main()
