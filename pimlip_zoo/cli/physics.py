"""What ``eval --physics`` and ``models --physics`` do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pimlip_zoo.errors import InputError, reading

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from pimlip_zoo.physics.examine import Examination, Step, Subject


@dataclass(frozen=True, kw_only=True)
class PhysicsRequest:
    """What the user wants measured."""

    structures: tuple[str, ...] = ()
    """As ``--structure`` takes them; none: typical ones of the data."""
    end: str | None = None
    """The structure at the other end of a path."""
    properties: tuple[str, ...] | None = None
    """None: all that apply."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Options of properties."""
    reference: str | None = None
    """A file, or a calculator."""
    kind: str | None = None
    """What the structures are; None: it is found."""
    data: str | None = None
    """Where typical structures come from; None: the data that the run was trained on."""
    dtype: str = "float64"
    device: str = "cpu"
    trust: bool = False


def physics_of_run(
    run: Path,
    request: PhysicsRequest,
    screen: Any,
    save: Callable[[dict[str, Any]], None],
    *,
    quiet: bool = False,
) -> tuple[dict[str, Any], int | None]:
    """Measure, say how it goes, and write down what there is after every property.

    Args:
        run: run folder, checkpoint or native model.
        request: what is wanted.
        screen: a console.
        save: called with the result so far.
        quiet: print no table of the values.

    Returns:
        The result, and the signal that ended it.

    Raises:
        InputError: before anything is computed, for everything in the request that cannot be used.
    """
    from pimlip_zoo.cli.signals import collected_signals
    from pimlip_zoo.physics.examine import Examination, select
    from pimlip_zoo.physics.reference import attach, reference_of_result

    properties = select(request.properties, request.settings)
    training = _training_data(run)
    subjects = _subjects(request, training)
    reference, other = _reference(request, subjects)
    calculator = _calculator(run, request)
    coverage = None
    if isinstance(training, str):
        screen.print(f"extrapolation is not judged: {training}")
    else:
        from pimlip_zoo.physics.coverage import coverage_of

        coverage = coverage_of(training)
    facts = {"model": str(run), "precision": _precision(run, request)}

    def keep(result: dict[str, Any]) -> None:
        attach(result, reference)
        save(facts | result)

    with collected_signals() as signals, _progress(screen) as progress:
        examination = Examination(
            calculator,
            subjects,
            properties,
            coverage=coverage,
            cutoff=_cutoff(calculator),
            stop=lambda: bool(signals),
            tick=progress.tick,
        )
        _print_plan(examination, screen, request.reference if other is not None else None)
        progress.start(examination.evaluations * (1 if other is None else 2))
        result = examination.run(keep, progress.done)
        if other is not None and not result["stopped"]:
            screen.print(f"the same with {request.reference}")
            second = Examination(
                other, subjects, properties, stop=lambda: bool(signals), tick=progress.tick
            ).run(done=progress.done)
            reference = reference_of_result(second, source=str(request.reference))
            keep(result)
    if not quiet:
        _print_result(result, screen)
    return facts | result, signals[0] if signals else None


class PhysicsFile:
    """Where results are written: the run's own file, which the report shows, and the one that the user names.

    What the run's own file has of other structures and properties of the same weights is kept.

    Args:
        run: run folder, checkpoint or native model.
        named: another file; a run that is no folder then has none of its own.
        errors: on labelled structures, which the named file has, too.
        unfinished: the step at which the training stands, and its last one, when it has not ended.
    """

    def __init__(
        self,
        run: Path,
        named: Path | None,
        errors: Mapping[str, Any] | None = None,
        *,
        unfinished: Mapping[str, int] | None = None,
    ) -> None:
        self._named, self._errors, self._unfinished = named, errors, unfinished
        own = run / "physics.json" if run.is_dir() else run.with_name(f"{run.stem}-physics.json")
        self._own = own if run.is_dir() or named is None else None
        self._weights = _weights(run)

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [path for path in (self._own, self._named) if path is not None]

    def save(self, result: dict[str, Any]) -> None:
        """Write the result so far."""
        from pimlip_zoo.files import write_json
        from pimlip_zoo.locks import in_turn

        unfinished = {} if self._unfinished is None else {"unfinished": dict(self._unfinished)}
        result = {"weights": self._weights, **unfinished, **result}
        named = result if self._errors is None else {**self._errors, "physics": result}
        if self._own is not None:
            with in_turn(
                self._own.with_name(f".{self._own.name}.lock")
            ):  # others may measure other structures
                write_json(self._own, self._merged(result, self._read()))
        if self._named is not None:
            write_json(self._named, named)

    def _read(self) -> dict[str, Any]:
        """What the run's own file has of the same weights, whoever wrote it."""
        if self._own is None or not self._own.is_file():
            return {}
        from pimlip_zoo.files import read_text

        try:
            content = json.loads(read_text(self._own))
            same = content["weights"] == self._weights and isinstance(content["structures"], dict)
        except (ValueError, KeyError, TypeError):
            return {}
        return content if same else {}

    def _merged(self, result: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
        structures = dict(before.get("structures", {}))
        for name, part in result["structures"].items():
            earlier = structures.get(name, {})
            same = all(earlier.get(key) == part[key] for key in ("formula", "atoms", "kind", "fingerprint"))
            kept = {
                kind: one
                for kind, one in (earlier.get("properties", {}) if same else {}).items()
                if kind not in part["properties"] or part["properties"][kind]["status"] == "not reached"
            }
            structures[name] = {**part, "properties": {**part["properties"], **kept}}
        return {**result, "structures": structures}


def request_of(
    *,
    structures: Sequence[str] | None,
    properties: str | None,
    settings: Sequence[str] | None,
    **others: Any,
) -> PhysicsRequest:
    """The request from what the command line was given."""
    from pimlip_zoo.config import check_once, parse_settings

    options = parse_settings(settings or [])
    check_once(options)
    return PhysicsRequest(
        structures=tuple(structures or ()),
        properties=None if properties is None else tuple(properties.split(",")),
        settings=tuple(options),
        **others,
    )


def property_table(*, json_output: bool) -> Any:
    """The registered properties: for people a table, otherwise JSON text."""
    from rich.markup import escape

    from pimlip_zoo.cli.console import plain_table
    from pimlip_zoo.physics.property import PROPERTIES

    found = PROPERTIES.all()
    if json_output:
        return json.dumps(
            {
                name: {
                    "description": one.description,
                    "kinds": sorted(one.kinds),
                    "options": {
                        option: {"default": field.default, "help": field.description}
                        for option, field in one.options.model_fields.items()
                    },
                }
                for name, one in found.items()
            },
            indent=1,
        )
    rows = []
    for name, one in found.items():
        options = "\n".join(
            f"{name}.{key}={field.default}" for key, field in one.options.model_fields.items()
        )
        rows.append((name, "\n".join(sorted(one.kinds)), escape(one.description), escape(options)))
    return plain_table("--properties", "of", "", "options", rows=rows)


def check_request(request: PhysicsRequest) -> None:
    """Refuse a request before there is a potential.

    Raises:
        InputError: for structures, properties, options or a reference that cannot be used.
    """
    from pimlip_zoo.physics.examine import select

    select(request.properties, request.settings)
    subjects = _subjects(request, "they are not known yet")
    _reference(request, subjects)


def measured_reference(request: PhysicsRequest, file: Path, screen: Any) -> PhysicsRequest:
    """The request with the values of a reference potential in place of it, measured once for many runs.

    Args:
        request: what is wanted.
        file: where the values are kept; they are not measured again when they are there.
        screen: a console.
    """
    from pimlip_zoo.cli.signals import collected_signals
    from pimlip_zoo.files import read_json, write_json, writing
    from pimlip_zoo.locks import making
    from pimlip_zoo.physics.examine import Examination, select

    subjects = _subjects(request, "they are not known yet")
    _, other = _reference(request, subjects)
    if other is None:
        return request
    found = replace(request, reference=str(file))
    wanted = {
        "model": request.reference,
        "reference_version": _reference_version(request),
        "wanted": [identities(subjects), list(request.properties or ()), list(map(list, request.settings))],
    }
    if file.is_file():
        with reading(file):
            before = read_json(file, dict)
            if {key: before.get(key) for key in wanted} == wanted:
                return found
    properties = select(request.properties, request.settings)
    screen.print(f"the reference, {request.reference}:", markup=False)
    with collected_signals() as signals, _progress(screen) as progress:
        examination = Examination(other, subjects, properties, stop=lambda: bool(signals), tick=progress.tick)
        _print_plan(examination, screen, None)
        progress.start(examination.evaluations)
        result = examination.run(done=progress.done)
    if signals:
        raise KeyboardInterrupt
    with writing(file), making(file.parent):
        write_json(file, {**wanted, **result})
    return found


def identities(subjects: Sequence[Subject]) -> dict[str, dict[str, Any]]:
    """What tells one structure from another, by name."""
    from pimlip_zoo.physics.examine import identity

    return {subject.name: identity(subject.atoms) for subject in subjects}


def _reference_version(request: PhysicsRequest) -> str:
    """What tells a reference potential from another of its name."""
    from pimlip_zoo.weak_labels.calculators import find_cheap_calculator

    given = str(request.reference)
    return _weights(Path(given)) if Path(given).exists() else find_cheap_calculator(given, trust=True).version


def check_measured(request: PhysicsRequest, results: Iterable[Path]) -> None:
    """Refuse points of a curve whose properties are those of other structures under the names of these.

    Raises:
        InputError: naming the file and the structure.
    """
    from pimlip_zoo.files import read_json
    from pimlip_zoo.physics.reference import check_same

    wanted = identities(_subjects(request, "they are not known yet"))
    for path in results:
        with reading(path):
            physics = read_json(path, dict).get("physics")
        if physics is not None:
            check_same(physics, wanted, path)


def _weights(run: Path) -> str:
    """What tells one potential from another: the content of its file."""
    from pimlip_zoo.files import content_hash

    if not run.is_dir():
        return content_hash(run) if run.is_file() else ""
    from pimlip_zoo.training.checkpoint import checkpoint_path

    return content_hash(checkpoint_path(run))


def _calculator(run: Path, request: PhysicsRequest) -> Calculator:
    import pimlip_zoo
    from pimlip_zoo.deploy.native.archive import SUFFIX

    if str(run).endswith(SUFFIX):
        return pimlip_zoo.calculator(run, device=request.device, trust=request.trust)
    import torch

    dtype = getattr(torch, request.dtype)
    return pimlip_zoo.calculator(run, device=request.device, trust=request.trust, dtype=dtype)


def _precision(run: Path, request: PhysicsRequest) -> str:
    from pimlip_zoo.deploy.native.archive import SUFFIX

    return "that of the native model" if str(run).endswith(SUFFIX) else request.dtype


def _cutoff(calculator: Any) -> float | None:
    found = getattr(getattr(calculator, "potential", None), "cutoff", None)
    return None if found is None else float(found)


def _training_data(run: Path) -> Any:
    """The frames that the run was trained on, or why they are not known."""
    config = run / "config.yaml"
    if not config.is_file():
        return f"{run} does not say what it was trained on"
    from pimlip_zoo.config import load_config
    from pimlip_zoo.datasets.readers import load_frames

    try:
        spec = load_config(config, complete=True).data.train
        return load_frames(spec)
    except InputError as error:
        return f"the training data cannot be read: {error}"


def _subjects(request: PhysicsRequest, training: Any) -> list[Subject]:
    from pimlip_zoo.deploy.structure import read_structure
    from pimlip_zoo.physics.examine import Subject
    from pimlip_zoo.physics.property import KINDS

    if request.kind is not None and request.kind not in KINDS:
        from pimlip_zoo.errors import did_you_mean

        raise InputError(
            f"no kind of structure is called {request.kind!r}",
            key="--kind",
            hint=did_you_mean(request.kind, KINDS),
        )
    found: dict[str, Atoms] = {}
    for spec in request.structures:
        if spec in found:
            raise InputError("is given twice", key=f"--structure {spec}", hint="name each structure once")
        found[spec] = read_structure(spec)
    if not found:
        found = _typical(request, training)
    if request.end is not None and len(found) != 1:
        raise InputError(
            f"a path has one start, there are {len(found)}: {', '.join(found)}",
            key="--to",
            hint="give one --structure",
        )
    end = None if request.end is None else read_structure(request.end)
    kind: Any = request.kind
    return [Subject(name, atoms, kind, end) for name, atoms in found.items()]


def _typical(request: PhysicsRequest, training: Any) -> dict[str, Atoms]:
    from pimlip_zoo.datasets.readers import load_frames
    from pimlip_zoo.physics.choose import typical_structures

    hint = "give --structure FILE, --structure bulk:Cu or --structure molecule:CH3CH2OH"
    frames = load_frames(request.data) if request.data is not None else training
    if isinstance(frames, str):
        raise InputError(f"there is no structure to measure: {frames}", key="--structure", hint=hint)
    found = typical_structures(frames)
    if not found:
        raise InputError(
            "the data have no crystal, liquid or molecule to measure", key="--structure", hint=hint
        )
    return found


def _reference(request: PhysicsRequest, subjects: Sequence[Subject]) -> tuple[Any, Calculator | None]:
    """Values by structure and property, or the calculator that they are measured with."""
    given = request.reference
    if given is None:
        return {}, None
    from pimlip_zoo.physics.reference import read_reference
    from pimlip_zoo.weak_labels.calculators import find_cheap_calculator

    path = Path(given)
    if path.suffix in (".yaml", ".yml", ".json"):
        return read_reference(path, identities(subjects)), None
    if path.exists():
        import pimlip_zoo

        return {}, pimlip_zoo.calculator(path, trust=request.trust)
    try:
        return {}, find_cheap_calculator(given, trust=True).make()
    except InputError as error:
        hint = (
            error.hint
            if error.message.endswith("installed")
            else "a .yaml or .json file, a run, gfn2, emt or MODULE:FACTORY"
        )
        raise InputError(
            error.message.replace("no cheap calculator is called", "is no reference:"),
            key="--reference",
            hint=hint,
        ) from error


class _Progress:
    """A bar on a terminal, and a line for each property."""

    def __init__(self, bar: Any, screen: Any) -> None:
        self._bar, self._screen = bar, screen
        self._task: Any = None
        self._planned = 0.0

    def start(self, evaluations: int) -> None:
        """From now on evaluations count."""
        self._task = self._bar.add_task("", total=max(evaluations, 1))

    def tick(self) -> None:
        """One evaluation more."""
        if self._task is not None:
            self._bar.advance(self._task)

    def done(self, step: Step, found: Mapping[str, Any]) -> None:
        """A property is through: what was planned for it is done, however much it was."""
        self._planned += step.evaluations
        if self._task is not None:
            self._bar.update(self._task, completed=self._planned)
        state = found["status"]
        colour = {"computed": "green", "doubtful": "yellow", "failed": "red", "stopped": "yellow"}[state]
        text = f"{step.subject}: {step.measured.name} [{colour}]{state}[/], {_duration(found['seconds'])}"
        self._screen.print(f"{text}: {found['reason']}" if found["reason"] else text)


@contextmanager
def _progress(screen: Any) -> Iterator[_Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), TextColumn("evaluations"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, disable=not screen.is_terminal, transient=True) as bar:
        yield _Progress(bar, screen)


def _print_plan(examination: Examination, screen: Any, other: str | None) -> None:
    from rich.markup import escape

    for name, (kind, why) in examination.kinds.items():
        screen.print(f"[bold]{escape(name)}[/bold]: {kind} ({why})")
        wanted = [step for step in examination.steps if step.subject == name]
        measured = [f"{s.measured.name} {_duration(s.seconds)}" for s in wanted if s.reason is None]
        screen.print(f"  to measure, with about the time: {', '.join(measured) or 'nothing'}")
        reasons: dict[str, list[str]] = {}
        for step in wanted:
            if step.reason is not None:
                reasons.setdefault(step.reason, []).append(step.measured.name)
        for reason, names in reasons.items():
            screen.print(f"  not applicable: {', '.join(names)}: {escape(reason)}")
    again = f", and as many with {escape(other)}" if other is not None else ""
    screen.print(
        f"about {examination.evaluations:,} evaluations, {_duration(examination.seconds)}{again}; "
        "Ctrl-C ends it and keeps what is computed"
    )


def _print_result(result: Mapping[str, Any], screen: Any) -> None:
    from rich.markup import escape

    from pimlip_zoo.cli.console import plain_table

    for name, part in result["structures"].items():
        compared = any(
            "error" in row for one in part["properties"].values() for row in one.get("values", {}).values()
        )
        columns = ("property", "value", "unit", *(("reference", "error") if compared else ()))
        table = plain_table(*columns, left=("property", "unit"), title=escape(name))
        remarks = []
        for kind, one in part["properties"].items():
            for value, row in one.get("values", {}).items():
                cells = [f"{kind}.{value}", _number(row["value"]), row["unit"]]
                if compared:
                    error = _number(row.get("error"), sign=True)
                    cells += [
                        _number(row.get("reference")),
                        f"[red]{error}[/red]" if row.get("within") is False else error,
                    ]
                table.add_row(*cells)
            remarks += [f"[yellow]{kind}: {escape(text)}[/yellow]" for text in one.get("doubts", ())]
            remarks += [f"{kind}: {escape(text)}" for text in one.get("notes", ())]
            if one["status"] in ("failed", "stopped", "not reached"):
                remarks.append(f"[red]{kind}: {one['status']}: {escape(str(one['reason']))}[/red]")
        screen.print(table)
        for text in remarks:
            screen.print(f"  {text}")


def _number(value: Any, *, sign: bool = False) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        shown = " ".join(f"{each:.4g}" for each in value[:6])
        return f"{shown} … ({len(value)})" if len(value) > 6 else shown
    return f"{value:+.4g}" if sign else f"{value:.5g}"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "< 1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
