"""The README's figure: force errors by number of labels, plain and with weak labels.

    python benchmarks/weak/figure.py conservative-acac-nequip-compact-12000   (docs/results/labels.png)

Reads one table of ``benchmarks/weak/results``: plain runs make a line, other ways are points on it or below; where
several seeds ran, bars are standard deviations.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
WAYS = {
    "pretrain": ("pre-trained on GFN2-xTB", "#d1762b", "s"),
    "distill": ("distilled student", "#7a5ba6", "^"),
    "curriculum": ("curriculum", "#2a8f6b", "D"),
    "delta": ("GFN2-xTB + difference model", "#a33b3b", "v"),
}
TITLES = {"test_MD_300K": "300 K, as trained on", "test_MD_600K": "600 K"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", help="name of a table of benchmarks/weak/results")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs" / "results" / "labels.png")
    options = parser.parse_args()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    errors: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    with (RESULTS / f"{options.table}.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            errors[row["test"], row["weak"], int(row["size"])].append(1e3 * float(row["forces_rmse"]))
    tests = list(dict.fromkeys(test for test, _, _ in errors))
    figure, axes = plt.subplots(1, len(tests), figsize=(4.2 * len(tests), 3.4), dpi=160, squeeze=False)
    for axis, test in zip(axes[0], tests, strict=True):
        sizes = sorted({size for t, way, size in errors if t == test and way == "plain"})
        plain = [statistics.mean(errors[test, "plain", size]) for size in sizes]
        axis.errorbar(
            sizes,
            plain,
            [spread(errors[test, "plain", size]) for size in sizes],
            color="#34495e",
            marker="o",
            label="labels alone",
            capsize=3,
        )
        for way, (label, color, marker) in WAYS.items():
            for size in sorted({s for t, w, s in errors if (t, w) == (test, way)}):
                values = errors[test, way, size]
                axis.errorbar(
                    [size],
                    [statistics.mean(values)],
                    [spread(values)],
                    color=color,
                    marker=marker,
                    linestyle="none",
                    capsize=3,
                    markersize=7,
                    label=label if size == min(s for t, w, s in errors if (t, w) == (test, way)) else None,
                )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(sizes)
        for formatted in (axis.xaxis, axis.yaxis):
            formatted.set_major_formatter(ScalarFormatter())
            formatted.set_minor_formatter(NullFormatter())
        axis.set_yticks([value for value in (10, 20, 30, 50, 100, 150) if value >= 0.8 * low(errors, test)])
        axis.set_xlabel("reference labels")
        axis.set_title(TITLES.get(Path(test).stem, Path(test).stem), fontsize=10)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("force error, meV/Å (RMS)")
    axes[0][-1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(options.out)
    print(f"written: {options.out}")
    return 0


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def low(errors: dict[tuple[str, str, int], list[float]], test: str) -> float:
    return min(min(values) for (t, _, _), values in errors.items() if t == test)


if __name__ == "__main__":
    raise SystemExit(main())
