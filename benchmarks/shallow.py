"""Shallow ensembles beside the posterior of the last layer and a committee: do they know better where forces are wrong?

    python benchmarks/shallow.py run --root DATA --sets acac,tio2 --seeds 0,1,2
    python benchmarks/shallow.py docs                                     (its table in docs/results/labelling.md)

A shallow ensemble (M. Kellner, M. Ceriotti, Mach. Learn.: Sci. Technol. 5, 035006 (2024)) has K last layers on one
backbone, whose spread is trained by the likelihood of the labels. Here it is a loss, registered by this file: the last
weights of the potential are the mean of the ensemble and learn from the ordinary losses; K deviations from them, whose
sum is zero, learn from ``err²/σ² + ln σ²`` of energies per atom and force components, times the σ² of the step
(M. Seitzer et al., arXiv:2203.09168), which makes its gradients as large as those of the mean squares. The errors are
constants there. σ² has a floor that is learnt, too.

All uncertainties are calibrated on the same validation structures in the same way. Each line of
``benchmarks/results/shallow.jsonl`` is a set, a seed and a kind of uncertainty: ``posterior`` of a run without this
loss, ``shallow``, ``posterior-of-shallow`` (of the run with it), and ``committee`` of the runs of all seeds.
"""

from __future__ import annotations

import argparse
import logging
import math
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "weak")]

import torch  # noqa: E402
from labelling import SETS, fitted, placed, spread  # noqa: E402
from pages import add_row, read_rows, write_between  # noqa: E402
from pydantic import PositiveInt  # noqa: E402
from study import parsers  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from pimlip_zoo.graph import Batch, edge_vectors, sum_by_structure  # noqa: E402
from pimlip_zoo.labelling.last_layer import LastLayer, _inputs, _last_inputs  # noqa: E402
from pimlip_zoo.labelling.uncertainty import Posterior, _validation, calibrate  # noqa: E402
from pimlip_zoo.losses import Evaluated, LossOptions, LossTerm, LossValue, Requests, Step, loss  # noqa: E402
from pimlip_zoo.models.readouts import readout_perceptrons  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "shallow.jsonl"
PAGE = ROOT / "docs" / "results" / "labelling.md"
LABELS = 50
KINDS = ("posterior", "shallow", "posterior-of-shallow", "committee")


class ShallowOptions(LossOptions):
    """Options of the loss, beside its weight."""

    members: PositiveInt = 8
    """K, last layers."""
    weights: PositiveInt = 32
    """D, of a last layer."""


@loss("shallow", label="forces", options=ShallowOptions)
class Shallow(LossTerm):
    """Likelihood of energies and forces by the spread of several last layers."""

    def __init__(self, weight: float = 1.0, members: int = 8, weights: int = 32) -> None:
        super().__init__("shallow", weight)
        self.deviations = nn.Parameter(torch.randn(members, weights, dtype=torch.float64))
        self.floors = nn.Parameter(torch.full((2,), math.log(1e-3), dtype=torch.float64))
        """ln σ of energies per atom and force components that no spread explains, eV and eV/Å."""

    def requests(self, batch: Batch, step: Step) -> Requests:  # noqa: ARG002
        """Forces of the labelled structures."""
        return Requests(forces=True)

    def forward(self, evaluated: Evaluated) -> LossValue:
        """Of the batch."""
        graph, labels, potential = evaluated.batch.graph, evaluated.batch.labels, evaluated.potential
        vectors = edge_vectors(graph).requires_grad_(True)
        readouts = readout_perceptrons(potential.model)
        with _inputs(readouts) as inputs:
            energy = potential.model(graph, vectors.to(potential.model.dtype)).double()
        parts = []
        for readout, (x,) in zip(readouts, inputs, strict=True):
            rows = _last_inputs(readout, x).double()
            if rows.shape[0] != len(graph.species):
                rows = rows.new_zeros((len(graph.species), rows.shape[1])).index_add(
                    0, graph.edge_index[0], rows
                )
            parts.append(rows)
        features = torch.cat(parts, dim=1)
        made = features.detach() @ torch.cat([r.weights[-1].detach().reshape(-1) for r in readouts]).double()
        factor = float(made @ energy.detach()) / max(float(made @ made), 1e-30)
        deviations = self.deviations - self.deviations.mean(dim=0)
        atomic = factor * potential.scale[graph.species].unsqueeze(1) * features @ deviations.T
        members = len(deviations)
        counts = torch.bincount(graph.batch, minlength=graph.num_graphs).unsqueeze(1)
        energies = sum_by_structure(atomic, graph) / counts
        centre, neighbour = graph.edge_index
        square = torch.zeros_like(graph.positions)
        for k in range(members):
            (gradient,) = torch.autograd.grad(atomic[:, k].sum(), vectors, create_graph=True)
            forces = torch.zeros_like(graph.positions).index_add(0, centre, gradient)
            square = square + forces.index_add(0, neighbour, -gradient).square()
        floor = torch.exp(2.0 * self.floors)
        of_energies = energies.square().sum(dim=1) / (members - 1) + floor[0]
        of_forces = square / (members - 1) + floor[1]
        predicted = evaluated.predictions
        error = ((predicted.energy - labels.energy) / counts.squeeze(1)).detach()
        value = _likelihood(error, of_energies) + _likelihood(
            (predicted.forces - labels.forces).detach(), of_forces
        )
        return LossValue(value, value.new_ones(()))


def _likelihood(error: Tensor, variance: Tensor) -> Tensor:
    """Mean over what is labelled; the gradient by the variance is ``1 - error² / variance``."""
    known = ~error.isnan()
    error, variance = error[known], variance[known]
    return (variance.detach() * (error.square() / variance + variance.log())).mean()


def main() -> int:
    parser, run = parsers("shallow", __doc__, sets="acac,tio2", steps=1000, run=run_all, show=show, docs=docs)
    run.add_argument("--members", type=int, default=8)
    run.add_argument("--weight", type=float, default=1.0)
    options = parser.parse_args()
    return options.function(options)


def run_all(options: argparse.Namespace) -> int:
    """Every seed's two runs, then the committee."""
    logging.getLogger("pimlip_zoo").setLevel(logging.WARNING)
    end = time.monotonic() + 60 * options.minutes
    seeds = list(map(int, options.seeds.split(",")))
    for name in options.sets.split(","):
        potentials = []
        for seed in seeds:
            for ensemble in (False, True):
                if time.monotonic() > end:
                    print("out of time: call it again")
                    return 0
                potential = one(options, name, seed, ensemble)
                potentials += [] if ensemble else [potential]
        committee(options, name, potentials)
    print("all done")
    return 0


def data_of(options: argparse.Namespace, name: str, seed: int) -> tuple[list, list]:
    import numpy as np

    from pimlip_zoo.datasets.readers import load_frames

    study = SETS[name]
    pool = load_frames(placed(options.root, study["pool"]))
    chosen = np.random.default_rng(1000 + seed).permutation(len(pool))[:LABELS]
    return [pool[index] for index in chosen], list(load_frames(placed(options.root, study["valid"])))[:50]


def one(options: argparse.Namespace, name: str, seed: int, ensemble: bool) -> Any:
    """Train and judge; the potential."""
    from pimlip_zoo.config import load_config
    from pimlip_zoo.experiment import prepare
    from pimlip_zoo.experiment import train as train_run
    from pimlip_zoo.training.checkpoint import load_potential

    train, valid = data_of(options, name, seed)
    folder = options.runs / f"{name}-{seed}-{options.steps}{f'-shallow{options.members}' if ensemble else ''}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        settings: dict[str, object] = {
            "seed": seed,
            "model.name": "nequip",
            "model.preset": "small",
            "data.train": "given",
            "data.valid": "given",
            "data.energy_references": "least_squares",
            "data.batch_size": SETS[name]["batch_size"],
            "trainer.max_steps": options.steps,
            "trainer.valid_every": max(options.steps // 4, 50),
            "trainer.threads": 1,
        }
        if ensemble:
            settings |= {
                "loss.shallow.weight": options.weight,
                "loss.shallow.members": options.members,
                "loss.shallow.weights": widths(name, seed, options),
            }
        started = time.process_time()
        outcome = train_run(prepare(load_config(None, list(settings.items())), split=(train, valid)), folder)
        if outcome.signal is not None:
            sys.exit(1)
        (folder / "done").write_text(str(round(time.process_time() - started, 1)))
    potential = load_potential(folder)
    seconds = float((folder / "done").read_text())
    posterior = fitted(folder, potential, train, valid)
    kept(
        options,
        name,
        seed,
        "posterior-of-shallow" if ensemble else "posterior",
        potential,
        posterior,
        seconds,
    )
    if ensemble:
        kept(options, name, seed, "shallow", potential, shallow_of(folder, potential, valid), seconds)
    return potential


def widths(name: str, seed: int, options: argparse.Namespace) -> int:
    """Weights of the last layer of the run without the ensemble, which comes first."""
    from pimlip_zoo.training.checkpoint import load_potential

    return len(LastLayer(load_potential(options.runs / f"{name}-{seed}-{options.steps}")))


def shallow_of(folder: Path, potential: Any, valid: list) -> Posterior:
    """The spread of the ensemble as a posterior: its covariance of the weights is that of the members."""
    from pimlip_zoo.training.checkpoint import checkpoint_path, read_checkpoint

    state = read_checkpoint(checkpoint_path(folder))["state_dict"]
    (deviations,) = (value.double() for key, value in state.items() if key.endswith(".deviations"))
    root = (deviations - deviations.mean(dim=0)).T / math.sqrt(len(deviations) - 1)
    energies, forces, energy_errors, force_errors = _validation(potential, LastLayer(potential), valid)
    raw = torch.sqrt(torch.einsum("ndc,de->nec", forces, root).square().sum(dim=(1, 2))).numpy()
    of_energies = calibrate(energy_errors, torch.linalg.vector_norm(energies @ root, dim=1).numpy())
    return Few(potential, root, of_energies, calibrate(force_errors, raw, 3))


class Few(Posterior):
    """Of few directions, whatever the number of weights."""

    def directions(self) -> Tensor:
        """(K, D)."""
        return self.root.T.contiguous()


def committee(options: argparse.Namespace, name: str, potentials: list) -> None:
    """Of the runs of all seeds, judged on the mean of their forces."""
    from pimlip_zoo.labelling.committee import CommitteeUncertainty

    _, valid = data_of(options, name, 0)
    kept(options, name, -1, "committee", potentials, CommitteeUncertainty(potentials, valid), 0.0)


def kept(
    options: argparse.Namespace, name: str, seed: int, kind: str, potential: Any, source: Any, seconds: float
) -> None:
    """Judge on every test and add a line, unless it is there."""
    key = {"set": name, "seed": seed, "kind": kind, "steps": options.steps, "members": options.members}
    if any(all(row[k] == v for k, v in key.items()) for row in read_rows(RESULTS)):
        return
    tests = {test: tested(potential, source, placed(options.root, test)) for test in SETS[name]["tests"]}
    row = {**key, "training_s": seconds, "tests": tests}
    add_row(RESULTS, row)
    print(row, flush=True)


def tested(potential: Any, source: Any, data: str) -> dict[str, float]:
    """Errors of forces in meV/Å, and the uncertainties of their lengths beside them."""
    import numpy as np

    from pimlip_zoo.datasets.neighbours import frame_to_sample
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.graph import collate
    from pimlip_zoo.labelling.uncertainty import covered

    frames = load_frames(data)
    frames = frames[:: max(1, len(frames) // 100)]
    members = potential if isinstance(potential, list) else [potential]
    errors, uncertainties, squares = [], [], []
    for start in range(0, len(frames), 10):
        part = frames[start : start + 10]
        batch = collate([frame_to_sample(frame, members[0].species, members[0].cutoff) for frame in part])
        with torch.no_grad():
            forces = torch.stack([m(batch.graph, forces=True, virial=False).forces for m in members]).mean(
                dim=0
            )
        off = batch.labels.forces - forces
        squares.append(off.square().reshape(-1).numpy())
        errors.append(torch.linalg.vector_norm(off, dim=1).numpy())
        uncertainties.append(source.forces_uncertainty(batch.graph))
    found = covered(np.concatenate(errors), np.concatenate(uncertainties), source.forces.quantile)
    return {
        "forces": round(1e3 * float(np.sqrt(np.mean(np.concatenate(squares)))), 1),
        "correlation": round(found["correlation"], 3),
        "coverage": round(found["coverage"], 3),
        "claimed": round(1e3 * found["rms_uncertainty"] / math.sqrt(3.0), 1),
    }


def table() -> list[str]:
    """Means and standard deviations over seeds."""
    head = (
        "test",
        "steps",
        "uncertainty",
        "runs",
        "forces, meV/Å",
        "claimed",
        "correlation",
        "coverage",
        "training, CPU s",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    groups: dict[tuple, list[dict]] = {}
    for row in read_rows(RESULTS):
        for test, values in row["tests"].items():
            group = (row["set"], test.split("@")[0], row["steps"], KINDS.index(row["kind"]))
            groups.setdefault(group, []).append({**values, "training_s": row["training_s"]})
    for (_, test, steps, kind), rows in sorted(groups.items()):
        cells = [spread([r[k] for r in rows]) for k in ("forces", "claimed")]
        cells += [f"{statistics.mean(r[k] for r in rows):.2f}" for k in ("correlation", "coverage")]
        seconds = statistics.mean(r["training_s"] for r in rows)
        cells.append(f"{seconds:.0f}" if seconds else "all")
        lines.append("| " + " | ".join([test, str(steps), KINDS[kind], str(len(rows)), *cells]) + " |")
    return lines


def show(options: argparse.Namespace) -> int:  # noqa: ARG001
    print("\n".join(table()))
    return 0


def docs(options: argparse.Namespace) -> int:  # noqa: ARG001
    write_between(PAGE, "shallow", table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
