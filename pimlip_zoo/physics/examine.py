"""All that is measured of a potential, one property after the other, and what is written down."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pimlip_zoo.errors import InputError, reason_of
from pimlip_zoo.physics.cost import measure_rate
from pimlip_zoo.physics.judge import Judge
from pimlip_zoo.physics.kinds import find_kind
from pimlip_zoo.physics.property import (
    PROPERTIES,
    Findings,
    Kind,
    NotPossibleError,
    Options,
    Property,
    StoppedError,
    Work,
)
from pimlip_zoo.physics.task import Task

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from pimlip_zoo.physics.coverage import Coverage

_FAULTS = (ArithmeticError, LookupError, ValueError, RuntimeError, NotImplementedError)
VERSION = 1


@dataclass(frozen=True)
class Subject:
    """A structure to be measured."""

    name: str
    atoms: Atoms
    kind: Kind | None = None
    """None: it is found."""
    end: Atoms | None = None
    """Another structure of the same atoms."""


@dataclass(frozen=True)
class Step:
    """A property of a structure."""

    subject: str
    measured: Property
    options: Options
    reason: str | None
    """Why it is not measured; None: it is."""
    work: tuple[Work, ...]
    seconds: float
    """About."""

    @property
    def evaluations(self) -> int:
        """About how many."""
        return sum(each.evaluations for each in self.work)


def select(
    names: Sequence[str] | None, settings: Sequence[tuple[str, Any]]
) -> dict[str, tuple[Property, Options]]:
    """The properties that are wanted, with their options.

    Args:
        names: of properties; all that are registered if not given.
        settings: ``("property.option", value)``.

    Raises:
        InputError: for a property or an option that there is not, or options of a property that is not wanted.
    """
    given: dict[str, dict[str, Any]] = {}
    for key, value in settings:
        name, dot, option = key.partition(".")
        PROPERTIES.get(name, key="--set")
        if not dot:
            raise InputError("names no option", key=f"--set {key}", hint=f"write --set {key}.OPTION=VALUE")
        if names is not None and name not in names:
            raise InputError(
                f"{name} is not measured", key=f"--set {key}", hint=f"add {name} to --properties"
            )
        given.setdefault(name, {})[option] = value
    chosen = {name: PROPERTIES.get(name, key="--properties") for name in names or PROPERTIES.all()}
    return {name: (one, one.configure(given.get(name, {}))) for name, one in chosen.items()}


class Examination:
    """A plan of what is measured, and its execution.

    Args:
        calculator: the potential.
        subjects: structures; their names are different.
        properties: from :func:`select`.
        coverage: of the training data; without it extrapolation is not judged.
        cutoff: Å, of the potential, where it is known.
        stop: asked before every evaluation; True ends it.
        tick: called after every evaluation.

    Raises:
        InputError: when the potential does not compute a structure.
    """

    def __init__(
        self,
        calculator: Calculator,
        subjects: Sequence[Subject],
        properties: Mapping[str, tuple[Property, Options]],
        *,
        coverage: Coverage | None = None,
        cutoff: float | None = None,
        stop: Callable[[], bool] | None = None,
        tick: Callable[[], None] | None = None,
    ) -> None:
        self.judge = Judge(calculator, coverage=coverage, stop=stop, tick=tick)
        self.steps: list[Step] = []
        self._tasks: dict[str, Task] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        for subject in subjects:
            _check(subject, calculator)
            kind, why = find_kind(subject.atoms) if subject.kind is None else (subject.kind, "as given")
            task = Task(subject.atoms, kind, self.judge, end=subject.end, cutoff=cutoff)
            self._tasks[subject.name] = task
            self._facts[subject.name] = {
                **identity(subject.atoms),
                "kind": kind,
                "kind_because": why,
                "notes": ["its constraints are not used"] if subject.atoms.constraints else [],
            }
            try:
                rate = measure_rate(task.structure, calculator)
            except InputError:
                raise
            except Exception as error:
                raise InputError(
                    f"the potential does not compute it: {reason_of(error)}", file=subject.name
                ) from error
            shared: set[str] = set()
            for one, options in properties.values():
                reason = _reason(one, options, task)
                work = () if reason is not None else tuple(one.cost(task, options))
                work = tuple(each for each in work if each.shared not in shared)
                shared |= {each.shared for each in work if each.shared}
                self.steps.append(Step(subject.name, one, options, reason, work, rate.seconds(work)))

    @property
    def kinds(self) -> dict[str, tuple[str, str]]:
        """What each structure is, and why."""
        return {name: (facts["kind"], facts["kind_because"]) for name, facts in self._facts.items()}

    @property
    def evaluations(self) -> int:
        """About how many there will be."""
        return sum(step.evaluations for step in self.steps)

    @property
    def seconds(self) -> float:
        """About how long they will take."""
        return sum(step.seconds for step in self.steps)

    def run(
        self,
        save: Callable[[dict[str, Any]], None] | None = None,
        done: Callable[[Step, dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Measure, and give what ``eval --physics`` writes.

        Args:
            save: called with the result so far after every property.
            done: called with every property that was measured, and what was found.
        """
        structures = {name: {**facts, "properties": {}} for name, facts in self._facts.items()}
        result: dict[str, Any] = {"version": VERSION, "stopped": False, "structures": structures}
        for step in self.steps:
            part = structures[step.subject]["properties"]
            if step.reason is not None:
                part[step.measured.name] = {"status": "not applicable", "reason": step.reason}
            else:
                part[step.measured.name] = {"status": "not reached", "reason": "ended before it"}
        for step in self.steps:
            if step.reason is not None:
                continue
            found = self._measure(step)
            structures[step.subject]["properties"][step.measured.name] = found
            result["stopped"] = found["status"] == "stopped"
            if save is not None:
                save(result)
            if done is not None:
                done(step, found)
            if result["stopped"]:
                break
        if save is not None:
            save(result)
        return result

    def _measure(self, step: Step) -> dict[str, Any]:
        task, found = self._tasks[step.subject], Findings()
        before, started = self.judge.evaluations, time.perf_counter()
        self.judge.outside = {}
        status, reason = "computed", None
        try:
            step.measured.function(task, step.options, found)
        except StoppedError:
            status, reason = "stopped", "ended by the user"
        except NotPossibleError as error:
            status, reason = "failed", str(error)
        except InputError as error:
            status, reason = "failed", error.message
        except _FAULTS as error:
            status, reason = "failed", f"{type(error).__name__}: {reason_of(error)}"
        doubts = list(found.doubts)
        if self.judge.coverage is not None:
            doubts += [f"extrapolates: {text}" for text in self.judge.coverage.sentences(self.judge.outside)]
        if status == "computed" and doubts:
            status = "doubtful"
        content = {
            "status": status,
            "reason": reason,
            "values": {name: {"value": one.value, "unit": one.unit} for name, one in found.values.items()},
            "doubts": list(dict.fromkeys(doubts)),
            "notes": found.notes,
            "series": found.series,
            "options": step.options.model_dump(mode="json"),
            "evaluations": self.judge.evaluations - before,
            "seconds": round(time.perf_counter() - started, 3),
        }
        return _plain(content)


def _reason(one: Property, options: Options, task: Task) -> str | None:
    if task.kind not in one.kinds:
        kinds = " and ".join(f"{kind}s" for kind in sorted(one.kinds))
        return f"for {kinds} only; this is {'an' if task.kind == 'atom' else 'a'} {task.kind}"
    return one.obstacle(task, options)


def identity(atoms: Atoms) -> dict[str, Any]:
    """What a result keeps of the structure that it is of."""
    return {
        "formula": atoms.get_chemical_formula(),
        "atoms": len(atoms),
        "fingerprint": _fingerprint(atoms),
    }


def _fingerprint(atoms: Atoms) -> str:
    """Of elements, positions, cell and periodicity."""
    parts = (
        np.asarray(atoms.numbers, dtype="<i8"),
        np.asarray(atoms.positions, dtype="<f8"),
        np.asarray(atoms.cell.array, dtype="<f8"),
        np.asarray(atoms.pbc, dtype="<i8"),
    )
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:16]


def _check(subject: Subject, calculator: Calculator) -> None:
    """Refuse what cannot be computed before anything is."""
    from ase.data import chemical_symbols

    atoms = subject.atoms
    if len(atoms) == 0:
        raise InputError("the structure has no atoms", file=subject.name)
    if atoms.pbc.any() and atoms.cell.rank < int(atoms.pbc.sum()):
        raise InputError("a periodic direction has no cell vector", file=subject.name)
    allowed = getattr(calculator, "allowed_atomic_numbers", None)
    if allowed is not None:
        unknown = [chemical_symbols[n] for n in sorted(set(atoms.numbers.tolist()) - set(allowed))]
        if unknown:
            known = ", ".join(chemical_symbols[n] for n in sorted(allowed))
            raise InputError(
                f"has {', '.join(unknown)}, which the potential does not know",
                file=subject.name,
                hint=f"it knows {known}",
            )
    end = subject.end
    if end is not None and (len(end) != len(atoms) or (end.numbers != atoms.numbers).any()):
        raise InputError(
            f"has other atoms, or another order, than {subject.name}",
            key="--to",
            hint="give the same atoms in the same order",
        )
    if end is not None and not np.allclose(end.cell.array, atoms.cell.array, atol=1e-4):
        raise InputError(f"has another cell than {subject.name}", key="--to", hint="give both in one cell")


def _plain(value: Any) -> Any:
    """Numbers that JSON has."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (np.floating, np.integer, np.bool_)):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
