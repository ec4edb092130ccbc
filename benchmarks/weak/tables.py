"""The study's results as tables: mean and standard deviation over seeds, tested against plain training.

A study's results are one file, results/NAME.csv: a row for each run and test, energies in eV, forces in eV/Å, stress in
eV/Å³. A table's place in the documentation is marked by `<!-- study NAME: begin -->` and `<!-- study NAME: end -->`;
that of one on the stability of dynamics by `<!-- stability NAME: begin -->` likewise.
"""

import csv
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pages import between
from sets import SETS
from ways import SETTINGS, TABLES

LEVEL = 0.05
"""Of Welch's two-sided test over the seeds, below which a difference to plain training is marked."""


QUANTITIES = ("energy", "energy_per_atom", "forces", "stress")
ERRORS = tuple(f"{quantity}_{kind}" for quantity in QUANTITIES for kind in ("mae", "rmse"))
OF_THE_RUN = ("steps", "total_steps", "parameters", "seconds", "cpu_seconds")
COLUMNS = ("size", "weak", "seed", "test", *ERRORS, *OF_THE_RUN)


def read(file):
    """The rows of a study, numbers as numbers; none where nothing has run yet."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{name: number(value) for name, value in row.items()} for row in rows]


def number(text):
    """What a cell holds."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text or None


def keep(result, file):
    """Add what came of one run."""
    from pimlip_zoo.files import replacing

    rows = read(file)
    for test, summary in result["tests"].items():
        row = {"test": test, **{name: result[name] for name in ("size", "weak", "seed", *OF_THE_RUN)}}
        for quantity in QUANTITIES:
            for kind in ("mae", "rmse"):
                value = (summary[quantity] or {}).get(kind)
                row[f"{quantity}_{kind}"] = None if value is None else float(f"{value:.7g}")
        rows.append(row)
    rows.sort(key=lambda row: (row["test"], row["weak"], row["size"], row["seed"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table_of(file, study):
    """Lines of Markdown: a row for each number of labels and way of training."""
    from pimlip_zoo.experiment.curve import summarise

    rows = read(file)
    quantity, unit = ("energy_per_atom_rmse", "meV/atom") if study.periodic else ("energy_rmse", "meV")
    tests = [test for test in study.tests if any(row["test"] == test for row in rows)]
    heads = [f"{name_of(test)}: {what}" for test in tests for what in (f"E {unit}", "F meV/Å")]
    lines = [
        f"| labels | training | {' | '.join(heads)} | steps | CPU s | seeds |",
        f"|{'---|' * (len(heads) + 5)}",
    ]
    summary = {(row["test"], row["size"], row["weak"]): row for row in summarise(rows)}
    keys = sorted({(size, weak) for _, size, weak in summary}, key=lambda key: (key[0], order_of(key[1])))
    for size, weak in keys:
        cells, found = [], None
        for test in tests:
            found = summary.get((test, size, weak))
            cells += [cell_of(rows, found, name) if found else "" for name in (quantity, "forces_rmse")]
        steps = f"{found['steps']:,.0f}" if found else ""
        lines.append(
            f"| {size} | {weak} | {' | '.join(cells)} | {steps} | {found['cpu_seconds']:.0f} | {found['seeds']} |"
        )
    return lines


def order_of(weak):
    """Plain first, then as the tables have them."""
    known = ["plain", "plain-short", *(way for table in TABLES.values() for way in table.ways), *SETTINGS]
    return known.index(weak) if weak in known else len(known)


def name_of(test):
    """What a test set is called in the head of a table."""
    stem = Path(test.replace("builtin:", "")).stem
    return re.sub(r"^test_(MD_)?", "", stem).replace("300K", "300 K").replace("600K", "600 K")


def cell_of(rows, row, name):
    """Mean and spread; bold where it is below plain training's with as many labels, italic where above."""
    if row[name] is None:
        return ""
    digits = 1 if 1e3 * row[name] >= 10 else 2
    text = f"{1e3 * row[name]:.{digits}f}"
    if row[f"{name}_std"] is not None:
        text += f" ± {1e3 * row[f'{name}_std']:.{digits}f}"
    ratio, chance = against_plain(rows, row, name)
    if chance is None or chance >= LEVEL:
        return text
    return f"**{text}**" if ratio > 1 else f"*{text}*"


def against_plain(rows, row, name):
    """How much smaller an error is than that of plain runs with as many labels, and Welch's p (two-sided), or None."""
    from scipy.stats import ttest_ind

    def values(way):
        return [r[name] for r in rows if (r["test"], r["size"], r["weak"]) == (row["test"], row["size"], way)]

    plain, own = values("plain"), values(row["weak"])
    if row["weak"] == "plain" or min(len(plain), len(own)) < 2 or None in plain or None in own:
        return 1.0, None
    ratio = sum(plain) / len(plain) / (sum(own) / len(own))
    return ratio, float(ttest_ind(plain, own, equal_var=False).pvalue)


def stability_table(file):
    """Lines of Markdown: how long simulations with each potential lasted, by ensemble and temperature."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = sorted({(row["ensemble"], float(row["temperature"])) for row in rows})
    heads = [f"{ensemble.upper()} {temperature:.0f} K" for ensemble, temperature in columns]
    lines = [f"| potential | {' | '.join(heads)} | ends |", f"|{'---|' * (len(heads) + 2)}"]
    for name in dict.fromkeys(row["potential"] for row in rows):
        own, cells = [row for row in rows if row["potential"] == name], []
        for column in columns:
            here = [row for row in own if (row["ensemble"], float(row["temperature"])) == column]
            times = ", ".join(
                f"{float(row['ps']):.2g}" if row["stable"] == "False" else f"**{float(row['ps']):.0f}**"
                for row in here
            )
            cells.append(times)
        ends = dict.fromkeys(reason_of(row["verdict"]) for row in own if row["stable"] == "False")
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(ends)} |")
    return lines


def reason_of(verdict):
    """Why a simulation ended, in a word or two."""
    for part, word in (
        ("broke", "bond"),
        ("crushed", "bond"),
        ("close", "collapse"),
        ("drifted", "energy"),
        ("temperature", "heat"),
    ):
        if part in verdict:
            return word
    return "not a number" if "not a number" in verdict else verdict


def fill(docs, results):
    """Replace what stands between the marks of every table that there are results for."""
    text = docs.read_text()
    for name in re.findall(r"<!-- study (\S+): begin -->", text):
        study = SETS[next(key for key in SETS if f"-{key}-" in name)]
        text = between(text, f"study {name}", table_of(results / f"{name}.csv", study))
    for name in re.findall(r"<!-- stability (\S+): begin -->", text):
        text = between(text, f"stability {name}", stability_table(results / f"stability-{name}.csv"))
    temporary = docs.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(docs)
