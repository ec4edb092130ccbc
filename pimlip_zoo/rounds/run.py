"""From a structure and a reference code to a potential: sample, select, label, train, test, until it is good enough.

Every round has a folder, and every phase leaves one file in it, written as a whole or not at all: run again after an
interruption, a phase whose file is there is not done again. Labels are kept one by one, trainings resume.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pimlip_zoo.config import RunConfig
from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb import FrameStore
from pimlip_zoo.datasets.neighbours import frame_to_sample
from pimlip_zoo.datasets.readers import load_frames
from pimlip_zoo.datasets.readers.left_out import say_not_kept
from pimlip_zoo.datasets.writing import write_frames
from pimlip_zoo.errors import InputError
from pimlip_zoo.evaluation import evaluate
from pimlip_zoo.experiment import has_checkpoint
from pimlip_zoo.experiment.made_with import hashes_of
from pimlip_zoo.experiment.record import seen_by
from pimlip_zoo.experiment.seen import seen_sentence
from pimlip_zoo.experiment.stages import prepare_run, train_run
from pimlip_zoo.files import read_json, write_json
from pimlip_zoo.labelling.acquisition import ACQUISITIONS, usual_acquisition
from pimlip_zoo.labelling.calculators import find_labeller
from pimlip_zoo.labelling.label import label
from pimlip_zoo.labelling.processes import Limits, Outcome
from pimlip_zoo.labelling.screening import screen
from pimlip_zoo.labelling.select import select
from pimlip_zoo.labelling.structures import structure_of
from pimlip_zoo.locks import claimed
from pimlip_zoo.outputs import check_unused
from pimlip_zoo.rounds.options import Rounds, lasting_options, training_config
from pimlip_zoo.rounds.story import REPORT, TABLE, checked_row, write_rounds_report
from pimlip_zoo.run_posterior import posterior_of
from pimlip_zoo.training.checkpoint import baseline_of, load_potential
from pimlip_zoo.weak_labels.calculators import find_cheap_calculator
from pimlip_zoo.weak_labels.pool import PoolOptions, labelled_pool
from pimlip_zoo.weak_labels.pool_work import told_duration

log = logging.getLogger("pimlip_zoo")

_STRAINED = 8
"""Strained cells of each crystal where sampling starts."""
_LOOKED_AT = 200
"""Structures of a pool whose uncertainty is computed."""
_LINE_AFTER = 30.0
"""Seconds between two lines that say how far labelling is."""


class StoppedError(Exception):
    """A signal ended a training.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def run_rounds(rounds: Rounds) -> list[dict[str, Any]]:
    """Do what is not done yet.

    Returns:
        A row for each round: see :func:`~pimlip_zoo.rounds.read_table`.

    Raises:
        InputError: when something cannot be used; all that was done stays.
        StoppedError: when a signal ended a training.
    """
    if not any(True for _ in rounds.out.glob("round-*")):
        check_unused(rounds.out, (TABLE, REPORT), key="out")
    if not (rounds.out / "round-1" / "labels.lmdb").exists():  # before structures are sampled for it
        try:
            find_labeller(rounds.label.calculator)
        except InputError as error:
            raise InputError(error.message, key="label.calculator", hint=error.hint) from error
    with claimed(rounds.out):
        _check_same(rounds)
        rows: list[dict[str, Any]] = []
        for number in range(1, rounds.stop.rounds + 1):
            rows.append(_round(rounds, number))
            write_json(rounds.out / TABLE, rows)
            write_rounds_report(rounds.out)
            row = rows[-1]
            errors = [
                f"{name} {1e3 * row[name]:.1f} {unit}"
                for name, unit in (("energy", "meV/atom"), ("forces", "meV/Å"))
                if row[name] is not None
            ]
            log.info("round %d: %d labels, %s on %s", number, row["labels"], ", ".join(errors), row["test"])
            if rounds.stop.forces is not None and row["forces"] is None:
                raise InputError(
                    "there are no forces to compare with",
                    key="stop.forces",
                    hint="leave it out: the labels and tests have energies alone",
                )
            if rounds.stop.forces is not None and row["forces"] <= rounds.stop.forces:
                log.info("that is enough: %.1f meV/Å were asked for", 1e3 * rounds.stop.forces)
                break
            uncertainty = row.get("uncertainty")
            wanted = rounds.stop.uncertainty
            if wanted is not None and uncertainty is not None and uncertainty <= wanted:
                log.info(
                    "that is enough: forces of the pool are uncertain by %.1f meV/Å, %.1f were asked for",
                    *(1e3 * uncertainty, 1e3 * wanted),
                )
                break
            if rounds.stop.labels is not None and row["labels"] >= rounds.stop.labels:
                log.info("the budget of %d labels is used", rounds.stop.labels)
                break
        return rows


def _round(rounds: Rounds, number: int) -> dict[str, Any]:
    folder = rounds.out / f"round-{number}"
    done = folder / "result.json"
    if done.exists():
        row = checked_row(read_json(done, dict), done)
        if row["round"] != number:
            raise InputError(f"is of round {row['round']}", file=done, hint="remove it, and it is made anew")
        return row
    folder.mkdir(exist_ok=True)
    pool = _sampled(rounds, number, folder)
    _chosen(rounds, number, folder, pool)
    failures = _labelled(rounds, number, folder)
    train = ",".join(str(rounds.out / f"round-{k}" / "labels.lmdb") for k in range(1, number + 1))
    valid = str(rounds.out / "round-1" / "valid-labels.lmdb")
    run = folder / "run"
    _train(training_config(rounds, train, valid, number), run)
    test = rounds.test or valid
    log.info("round %d: errors on %s, and how certain the potential is", number, rounds.test or "validation")
    potential = load_potential(run, difference=True)
    summary = evaluate(potential, test, baseline=baseline_of(run), trust=True).summary
    seen = None if rounds.test is None else seen_by(run, load_frames(rounds.test))
    if seen is not None and (sentence := seen_sentence(seen)) is not None:  # they were in the pool, too
        log.warning("round %d: tests: %s", number, sentence)
    row = {
        "round": number,
        "labels": len(load_frames(train)),
        "failures": failures,
        "energy": summary["energy_per_atom"]["rmse"] if summary.get("energy_per_atom") else None,
        "forces": summary["forces"]["rmse"] if summary.get("forces") else None,
        "test": rounds.test or "validation",
        "uncertainty": _uncertainty(rounds, run, pool),
        "acquisition": _acquisition_of(rounds, number, folder),
        "run": str(run),
    }
    write_json(done, row)
    return row


def _sampled(rounds: Rounds, number: int, folder: Path) -> list[Frame]:
    """The pool of a round: structures that are sampled, and those that are given."""
    sample = rounds.sample
    given = []
    if sample.pool is not None:
        lost: set[str] = set()
        given = load_frames(sample.pool, not_kept=lost)
        say_not_kept(sample.pool, lost)
    if sample.start is None:
        return given
    path = folder / "pool.lmdb"
    if not path.exists():
        not_kept: set[str] = set()
        starts = load_frames(sample.start, not_kept=not_kept)
        say_not_kept(sample.start, not_kept, "every atom moves where structures are sampled")
        if sample.strain:
            starts = _strained(starts, sample.strain, np.random.default_rng([rounds.seed, number]))
        temperatures = sorted(sample.temperatures)
        name = sample.calculator
        if number > 1:
            name = f"run:{rounds.out / f'round-{number - 1}' / 'run'}"
            temperatures = temperatures[: number - 1]
        log.info(
            "round %d: sampling with %s at %s K", number, name, ", ".join(f"{t:g}" for t in temperatures)
        )
        options = PoolOptions(
            structures=sample.structures,
            temperatures=tuple(temperatures),
            timestep=sample.timestep,
            stride=sample.stride,
            seed=rounds.seed + number,
        )
        level = find_cheap_calculator(name, trust=True)
        parts = folder / "sampling"  # trajectories are kept one by one
        frames = labelled_pool(starts, level, options, parts)
        write_frames(path, frames)
        shutil.rmtree(parts)
    return [*FrameStore(path), *given]


def _strained(frames: Sequence[Frame], largest: float, rng: np.random.Generator) -> list[Frame]:
    """The structures, and of each crystal some with a strained cell.

    Raises:
        InputError: when there is no crystal.
    """
    found = list(frames)
    for frame in frames:
        for _ in range(_STRAINED if frame.pbc.all() else 0):
            strain = rng.uniform(-largest, largest, size=(3, 3))
            change = np.eye(3) + 0.5 * (strain + strain.T)
            found.append(
                replace(
                    frame,
                    positions=frame.positions @ change,
                    cell=frame.cell @ change,
                    energy=None,
                    forces=None,
                    stress=None,
                )
            )
    if len(found) == len(frames):
        raise InputError(
            "no structure is periodic in three directions", key="sample.strain", hint="leave it out"
        )
    return found


def _uncertainty(rounds: Rounds, run: Path, pool: Sequence[Frame]) -> float | None:
    """Root mean square uncertainty of the forces in a pool, eV/Å; None for a potential without a posterior."""
    potential = load_potential(run, difference=True)
    if potential.is_direct:
        if rounds.stop.uncertainty is not None:
            raise InputError(
                "a potential with direct forces does not know how certain it is",
                key="stop.uncertainty",
                hint="train conservative forces, or leave it out",
            )
        return None
    posterior = posterior_of(run, trust=True)
    usable, _ = screen(pool)
    drawn = np.random.default_rng(rounds.seed).permutation(usable)[:_LOOKED_AT]
    squares = []
    for index in drawn:
        graph = frame_to_sample(pool[index], potential.species, potential.cutoff).graph
        squares.append(posterior.forces_uncertainty(graph) ** 2)
    return float(np.sqrt(np.mean(np.concatenate(squares))))


def _acquisition_of(rounds: Rounds, number: int, folder: Path) -> str:
    """By which the structures of a round were chosen; former versions did not write it down."""
    given = rounds.select.first if number == 1 else rounds.select.later
    return str(read_json(folder / "choice.json", dict).get("acquisition", given))


def _chosen(rounds: Rounds, number: int, folder: Path, pool: Sequence[Frame]) -> None:
    """The structures to label; in the first round those for validation, too."""
    path = folder / "chosen.lmdb"
    if path.exists():
        return
    rng = np.random.default_rng([rounds.seed, number])
    known: list[Frame] = []
    potential = posterior = None
    if number == 1:
        held = folder / "valid.lmdb"
        if not held.exists():
            drawn = select(pool, rounds.select.valid, acquisition="random", seed=rounds.seed)
            write_frames(held, drawn.frames)
        known = list(FrameStore(held))
        name = rounds.select.first or usual_acquisition(pool, trained=False)
    else:
        for before in range(1, number):
            known += list(FrameStore(rounds.out / f"round-{before}" / "chosen.lmdb"))
        known += list(FrameStore(rounds.out / "round-1" / "valid.lmdb"))
        run = rounds.out / f"round-{number - 1}" / "run"
        potential, name = load_potential(run, difference=True), rounds.select.later
        posterior = posterior_of(run, trust=True) if ACQUISITIONS.get(name).posterior else None
    count = rounds.select.number
    if rounds.stop.labels is not None and number > 1:
        have = sum(len(FrameStore(rounds.out / f"round-{k}" / "chosen.lmdb")) for k in range(1, number))
        count = max(min(count, rounds.stop.labels - have), 1)
    made = select(
        pool,
        count,
        acquisition=name,
        known=known,
        potential=potential,
        posterior=posterior,
        seed=int(rng.integers(2**31)),
        source=rounds.sample.pool or f"the pool of round {number}",
    )
    reasons = Counter(left.reason for left in made.left_out)
    why_not = "".join(f"; {one} left out: {reason}" for reason, one in reasons.items())
    log.info(
        "round %d: %d of the pool's %d structures by %s%s",
        *(number, len(made.frames), len(pool), name, why_not),
    )
    why = {
        "acquisition": name,
        "unit": made.unit,
        "pool": len(pool),
        "usable": made.usable,
        "left_out": dict(reasons),
    }
    write_json(folder / "choice.json", why)
    write_frames(path, made.frames)


def _labelled(rounds: Rounds, number: int, folder: Path) -> int:
    """Labels of the chosen structures; how many have none."""
    parts = [("chosen", "labels")] + ([("valid", "valid-labels")] if number == 1 else [])
    failures = 0
    for chosen, labels in parts:
        structures = [
            structure_of(replace(frame, energy=None, forces=None, stress=None), file=chosen, index=index)
            for index, frame in enumerate(FrameStore(folder / f"{chosen}.lmdb"))
        ]
        given = rounds.label
        result = label(
            structures,
            folder / f"{labels}.lmdb",
            given.calculator,
            workers=given.workers,
            limits=Limits(seconds=given.seconds, memory=given.memory),
            level=given.level,
            progress=_tells(f"round {number}: {chosen}"),
        )
        if result.out is None:
            raise InputError(
                f"not a single structure has a label: {result.failures[0].reason}",
                file=folder,
                key="label.calculator",
            )
        log.info("round %d: %d of %d %s labelled", number, result.labelled, len(structures), chosen)
        failures += len(result.failures)
    return failures


def _tells(what: str) -> Callable[[Outcome, int, int], None]:
    """Says how far the labels are: after the first structure, and then every so often."""
    begun = time.monotonic()
    last = -math.inf

    def tell(outcome: Outcome, done: int, total: int) -> None:  # noqa: ARG001
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last < _LINE_AFTER:
            return
        last = now
        left = told_duration((now - begun) / done * (total - done))
        log.info("%s, %d of %d labelled, about %s left", what, done, total, left)

    return tell


def _train(config: RunConfig, run: Path) -> None:
    if (run / "trained").exists():
        return
    resume = has_checkpoint(run)
    experiment = prepare_run(config, resumes=run if resume else None)
    outcome = train_run(experiment, run, resume=resume)
    if outcome.signal is not None:
        raise StoppedError(outcome.signal)
    (run / "trained").touch()


def _check_same(rounds: Rounds) -> None:
    """Refuse to go on with other options than the rounds began with; when to stop, and limits, may change."""
    _check_same_structures(rounds)
    path = rounds.out / "rounds-began-with.json"
    now = lasting_options(rounds)
    if path.exists():  # options that are newer than the file have their defaults there
        before = lasting_options(Rounds.model_validate(read_json(path, dict)))
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            raise InputError(
                f"it began with {before.get(changed[0])}, given is {now[changed[0]]}",
                file=rounds.out,
                key=changed[0],
                hint="name another folder with out:, or put the old option back",
            )
        return
    if (rounds.out / "round-1").exists():
        log.warning(
            "%s has no %s: whether its options are still the same is not known", rounds.out, path.name
        )
    write_json(path, now)


def _check_same_structures(rounds: Rounds) -> None:
    """Refuse other structures under the old names: rows of the table would be errors on different ones."""
    path = rounds.out / "rounds-structures.json"
    specs = {"sample.pool": rounds.sample.pool, "sample.start": rounds.sample.start, "test": rounds.test}
    now = {key: hashes_of([spec])[spec] for key, spec in specs.items() if spec is not None}
    if not path.exists():
        write_json(path, now)
        return
    for key, before in read_json(path, dict).items():
        if now.get(key, before) != before:
            raise InputError(
                f"has other structures than the rounds began with: {specs[key]}",
                file=rounds.out,
                key=key,
                hint="put the old ones back, or name another folder with out:",
            )
