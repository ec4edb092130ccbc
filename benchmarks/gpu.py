"""All that a GPU is needed for, in about ten minutes: its tests, then steps and predictions by every backend.

    pip install 'pimlip-zoo[gpu,cueq,test]' cuequivariance-ops-torch-cu12
    python benchmarks/gpu.py                          (writes docs/results/gpu.md)
    python benchmarks/gpu.py --device cpu --page -    (tries the script itself where there is no GPU)

The tests are those of the triton and cuEquivariance kernels and of models by backend; on a GPU they run there. Then
training steps on 32 molecules and predictions of periodic boxes of 216 and 1,728 atoms, small models of the three
architectures, float32: plain torch (reference), triton and cuEquivariance, each in a process of its own. Structures are
built in or made here. Once the time is spent, the rest is left out and named.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import backends

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("test_triton.py", "test_cueq.py", "test_models_by_backend.py")
CASES = (("train32", 1), ("inferbox", 1), ("inferbox", 2))
MODELS = ("nequip", "allegro", "mace")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds for all of it")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--page", default=str(ROOT / "docs" / "results" / "gpu.md"), help="or - for none")
    options = parser.parse_args()
    start = time.monotonic()
    if not usable(options.device):
        print(f"torch sees no device {options.device}; --device cpu tries the script itself", file=sys.stderr)
        return 2
    tests = "not run" if options.no_tests else tested(options.limit / 2)
    print(f"tests: {tests}", flush=True)
    rows, missing = [], []
    names = ("reference", "cpu") if options.device == "cpu" else ("reference", "triton", "cueq")
    with tempfile.TemporaryDirectory() as folder:
        options.data, options.box = structures(Path(folder))
        for task, repeat in CASES:
            for model in MODELS:
                for name in names:
                    what = f"{model}, {task}, box times {repeat}, {name}"
                    if time.monotonic() - start > options.limit:
                        missing.append(f"{what}: no time left")
                        continue
                    row = backends.measure(options, model, "small", task, repeat, name)
                    missing += [f"{what}: does not run here"] if row is None else []
                    rows += [] if row is None else [row]
    if not rows:
        print("nothing was measured", file=sys.stderr)
        return 1
    lines = [f"Tests on the device: {tests}.", "", *backends.table(rows)]
    if missing:
        lines += ["", "Left out:", "", *(f"- {line}" for line in missing)]
    print("\n".join(lines))
    if options.page != "-":
        page = Path(options.page)
        if not page.exists():
            page.write_text("# On a GPU\n\nWritten by `python benchmarks/gpu.py`.\n")
        backends.write(page, lines)
    return 0


def usable(device: str) -> bool:
    import torch

    return device == "cpu" or torch.cuda.is_available()


def tested(limit: float) -> str:
    """What pytest says in its last line."""
    files = [str(ROOT / "tests" / "compiled" / "kernels" / name) for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "", *files]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not done after {limit:.0f} s"
    if done.returncode:
        print(done.stdout[-4000:], file=sys.stderr)
    return next(iter(done.stdout.strip().splitlines()[-1:]), done.stderr.strip()[-200:])


def structures(folder: Path) -> tuple[Path, Path]:
    """Molecules with labels, and a box at the density of liquid water, as extended XYZ."""
    import ase
    import ase.io
    import numpy as np

    from pimlip_zoo.datasets.frame import frame_to_atoms
    from pimlip_zoo.datasets.readers import load_frames

    molecules, box = folder / "molecules.extxyz", folder / "box.extxyz"
    frames = load_frames("builtin:ethanol-gfn2/train@:128")
    ase.io.write(molecules, [frame_to_atoms(frame) for frame in frames])
    random, count = np.random.default_rng(0), 6
    grid = np.stack(np.meshgrid(*[np.arange(count)] * 3, indexing="ij"), -1).reshape(-1, 3)
    length = (len(grid) / 0.1) ** (1 / 3)
    positions = (grid + random.uniform(-0.15, 0.15, grid.shape)) * length / count
    numbers = random.choice([1, 6, 7, 8], len(grid))
    ase.io.write(box, ase.Atoms(numbers, positions, cell=[length] * 3, pbc=True))
    return molecules, box


if __name__ == "__main__":
    sys.exit(main())
