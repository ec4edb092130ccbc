r"""Pack trained runs as ``builtin:organic-gfn2``: weights alone, float32, with what they learnt and how well.

::

    python scripts/builtin_data/organic.py FOLDER
    pimlip-zoo train --model nequip --preset compact --data FOLDER/train.extxyz --valid FOLDER/valid.extxyz --out RUN \
        --max-steps 18000 --set trainer.valid_every=2000
    python scripts/builtin_data/organic_start.py RUN --test FOLDER/test.extxyz

writes ``pimlip_zoo/training/weights/organic-gfn2-nequip.ckpt`` and prints its checksum, which belongs into
``pimlip_zoo/training/shipped.py``. MACE ``small`` had 14,000 steps, Allegro ``small`` 7,000.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch

import pimlip_zoo
from pimlip_zoo.evaluation import evaluate
from pimlip_zoo.files import replacing
from pimlip_zoo.training.checkpoint import KEY, checkpoint_path, describe, load_potential, read_checkpoint
from pimlip_zoo.training.shipped import PREFIX, STARTS

NAME = "organic-gfn2"
FOLDER = Path(pimlip_zoo.__file__).parent / "training" / "weights"


def pack(run: Path, test: Path) -> Path:
    """Write the file of a run's architecture.

    Args:
        run: folder of the training.
        test: structures of molecules that it has not seen.
    """
    from pimlip_zoo.training.checkpoint import save_potential

    potential = load_potential(run, dtype=torch.float32)
    errors = evaluate(potential, str(test)).summary
    content = read_checkpoint(checkpoint_path(run))
    config = (content[KEY].get("summary") or {}).get("config") or {}
    learnt = {
        "level_of_theory": "GFN2-xTB",
        "made_by": "scripts/builtin_data/organic.py, organic_start.py",
        "licence": "MIT, as the package",
        "steps": content.get("global_step"),
        "recipe": config.get("recipe"),
        "errors_of_other_molecules": {
            "forces_rmse_eV_A": errors["forces"]["rmse"],
            "energy_rmse_eV_atom": errors["energy_per_atom"]["rmse"],
        },
    }
    architecture = str(describe(potential)["model"])
    target = FOLDER / f"{NAME}-{architecture}.ckpt"
    FOLDER.mkdir(exist_ok=True)
    with replacing(target) as scratch:
        save_potential(potential, scratch, origin=learnt)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--test", type=Path, required=True)
    given = parser.parse_args()
    file = pack(given.run, given.test)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    known = digest in STARTS[NAME].checksums.values()
    print(f"{file}: {file.stat().st_size:,} bytes, {digest}{' (known)' if known else ''}; {PREFIX}{NAME}")
