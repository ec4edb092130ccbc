"""What the audit of magnitudes measures on real sets: the stiffness of bonds to hydrogen, eV/Å².

    python benchmarks/audit.py --root DATA

DATA is the folder of the data sets, see ``benchmarks/weak/sets.py``; a set that is not there is named.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SPECS = (
    "builtin:ethanol-gfn2/train",
    "acac/train_300K.extxyz",
    "3bpa/train_300K.extxyz",
    "rmd17_aspirin/valid_950.extxyz",
    "deepmd_water/train_data_0.extxyz",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the data sets")
    options = parser.parse_args()

    from pimlip_zoo.datasets.audit.magnitudes import stiffness_of_hydrogen
    from pimlip_zoo.datasets.readers import load_frames

    for spec in SPECS:
        place = spec if spec.startswith("builtin:") else str(options.root / spec)
        if not spec.startswith("builtin:") and not Path(place).exists():
            print(f"{spec}: not there", file=sys.stderr)
            continue
        found = stiffness_of_hydrogen(load_frames(f"{place}@:200"))
        print(f"{spec}: {'-' if found is None else f'{found:.1f}'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
