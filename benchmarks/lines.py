"""How many lines the package has, by folder: the numbers of docs/architecture.md.

    python benchmarks/lines.py [CHECKOUT]

Python with docstrings and blank lines, of this checkout or of another one; then what of it is docstrings, blank and
imports, the lines in C, C++ and CMake, the pages of documentation, and the parts that could leave.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

FOLDERS = (
    ("cli",), ("compiled",), ("consistency",), ("datasets",), ("deploy",), ("experiment",), ("foundation",),
    ("labelling",), ("losses",), ("models", "nn"), ("physics",), ("report",), ("testing", "training"), ("rounds",),
    ("weak_labels",),
)  # fmt: skip
PARTS = {
    "readers of other packages' models": (
        "foundation/mace_torch/*.py",
        "foundation/nequip/*.py",
        "foundation/sevennet/*.py",
        "foundation/shapes.py",
    ),
    "eval --physics and its pictures": ("physics/*.py", "report/physics.py", "cli/physics.py"),
    "GPU kernels and cuEquivariance": (
        "compiled/kernels/*/gpu.py",
        "compiled/kernels/launch.py",
        "compiled/kernels/cueq.py",
    ),
    "tables in native C, AOTInductor, ML-IAP, torch-sim": (
        "deploy/native/tabulate.py",
        "deploy/native/lengths.py",
        "compiled/kernels/table.py",
        "compiled/sweeps/table.py",
        "deploy/aot.py",
        "deploy/mliap.py",
        "deploy/torchsim.py",
    ),
    "readers of HDF5, n2p2, DeePMD, ASE databases": (
        "datasets/readers/hdf5.py",
        "datasets/readers/n2p2.py",
        "datasets/readers/deepmd.py",
        "datasets/readers/ase_db.py",
        "datasets/readers/aselmdb.py",
        "datasets/readers/sqlite_file.py",
    ),
    "batches of molecules from the bytes of a store, many at once": (
        "datasets/molecules.py",
        "datasets/same_size.py",
    ),
    "low-rank updates": ("training/low_rank.py",),
}
NOT_PYTHON = ("*.c", "*.cpp", "*.h", "CMakeLists.txt")


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    package = root / "pimlip_zoo"
    print("| folder | lines |\n|---|---|")
    for names in FOLDERS:
        print(f"| {', '.join(names)} | {sum(lines(package / name, '*.py') for name in names):,} |")
    print(f"| the root | {sum(map(length, package.glob('*.py'))):,} |")
    print(f"| all | {lines(package, '*.py'):,} |\n")
    docstrings, blank, imports = (sum(kind) for kind in zip(*map(kinds, package.rglob("*.py")), strict=True))
    print(f"docstrings {docstrings:,}, blank {blank:,}, imports {imports:,}")
    print(f"C, C++, CMake {sum(lines(package, each) for each in NOT_PYTHON):,}")
    print(f"pages of documentation {lines(root / 'docs', '*.md'):,}\n")
    for part, patterns in PARTS.items():
        print(f"{part}: {sum(length(file) for each in patterns for file in package.glob(each)):,}")


def lines(folder: Path, pattern: str) -> int:
    """Of all files below a folder."""
    return sum(map(length, folder.rglob(pattern)))


def length(file: Path) -> int:
    return file.read_bytes().count(b"\n")


def kinds(file: Path) -> tuple[int, int, int]:
    """Lines of docstrings (those of attributes, too), blank lines outside them, lines of imports."""
    text = file.read_text()
    docstrings, imports = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.update(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str):
            docstrings.update(range(node.lineno, node.end_lineno + 1))
    blank = {n for n, line in enumerate(text.splitlines(), 1) if not line.strip()} - docstrings
    return len(docstrings), len(blank), len(imports)


if __name__ == "__main__":
    main()
