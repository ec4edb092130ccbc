"""``python scripts/builtin_data NAME -o OUT``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from make import MAKERS, make_builtin

from pimlip_zoo.errors import InputError


def report(split: str, done: int, total: int) -> None:
    """Say every fiftieth structure how far it is."""
    if done % 50 == 0 or done == total:
        print(f"{done} of {total} structures, {split}")


parser = argparse.ArgumentParser(
    "builtin_data", description="Compute a built-in data set again, with the reference method that made it."
)
parser.add_argument("name", choices=sorted(MAKERS))
parser.add_argument(
    "--out", "-o", type=Path, help="a folder, or a file *.npz; by default the name of the set"
)
parser.add_argument("--seed", type=int, help="of all random numbers; by default the set's own")
given = parser.parse_args()
try:
    written = make_builtin(given.name, given.out or Path(given.name), seed=given.seed, progress=report)
except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
for path in written:
    print(path)
