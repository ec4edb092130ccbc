"""``pimlip-zoo data``: look at data, check it, convert it, split it, get known sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from pimlip_zoo.datasets.frame import Frame

app = typer.Typer(no_args_is_help=True, help="Look at data, check it, convert it, split it, get known sets.")

_MOST_KINDS = 20

Data = Annotated[
    str, typer.Argument(help="builtin:NAME/SPLIT, or files: PATH[@START:STOP:STEP][?energy=UNIT&...].")
]


@app.command("info", epilog="Example: pimlip-zoo data info train.extxyz --json info.json")
def info_command(
    data: Data,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was found.")] = None,
    cutoff: Annotated[float, typer.Option(help="Å, of the model that is to be trained.")] = 5.0,
) -> None:
    """What a data set holds: labels, elements, compositions, suggested energies of atoms."""
    from pimlip_zoo.cli.console import console
    from pimlip_zoo.cli.light import import_without_torch
    from pimlip_zoo.datasets.audit import survey_data
    from pimlip_zoo.datasets.audit.report import describe, survey_tables
    from pimlip_zoo.files import write_json
    from pimlip_zoo.outputs import check_output, results

    check_output(json_file, results("structures"), key="--json")
    import_without_torch("vesin")
    with _progress("structures") as advance:
        survey = survey_data(data, data, cutoff=cutoff, progress=lambda _, done: advance(done))
    screen = console()
    for table in survey_tables(survey):
        screen.print(table, "")
    for error in survey.bad[:20]:
        screen.print(f"[red]cannot be used:[/red] {error}")
    if json_file is not None:
        write_json(json_file, describe(survey), allow_nan=False)


@app.command(
    "check", epilog="Example: pimlip-zoo data check train.extxyz --valid valid.extxyz --html audit.html"
)
def check_command(
    data: Data,
    valid: Annotated[str | None, typer.Option(help="Validation data: leakage is looked for.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="Test data; may be given several times.")] = None,
    labels: Annotated[str | None, typer.Option(help="What training is to use: energy,forces,stress.")] = None,
    cutoff: Annotated[float, typer.Option(help="Å, of the model that is to be trained.")] = 5.0,
    isolated: Annotated[
        str | None, typer.Option(help="File of isolated atoms, whose energies are checked.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was found.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a page.")] = None,
) -> None:
    """Look for what would spoil a training. Exit code 3: training on the data would be refused."""
    from pimlip_zoo.cli.console import console
    from pimlip_zoo.cli.light import import_without_torch
    from pimlip_zoo.datasets.audit import audit
    from pimlip_zoo.datasets.audit.report import as_html, as_json, finding_table, survey_tables
    from pimlip_zoo.datasets.coverage import isolated_atom_energies
    from pimlip_zoo.datasets.readers import read_frames
    from pimlip_zoo.files import write_json, write_text
    from pimlip_zoo.outputs import PAGE, check_different, check_output, results

    check_output(json_file, results("findings"), key="--json")
    check_output(html_file, PAGE, key="--html")
    check_different({"--json": json_file, "--html": html_file})
    import_without_torch("vesin")
    splits = {"train": data}
    if valid:
        splits["valid"] = valid
    for number, spec in enumerate(test or [], start=1):
        splits["test" if len(test or []) == 1 else f"test {number}"] = spec
    with _progress("structures") as advance:
        found = audit(
            splits,
            labels=_labels(labels),
            cutoff=cutoff,
            atom_energies=isolated_atom_energies(read_frames(isolated)) if isolated else None,
            progress=lambda name, done: advance(done, None, name),
        )
    screen = console()
    for survey in found.surveys:
        for table in survey_tables(survey)[:2]:
            screen.print(table, "")
    screen.print(finding_table(found))
    if json_file is not None:
        write_json(json_file, as_json(found), allow_nan=False)
    if html_file is not None:
        write_text(html_file, as_html(found))
    if found.refused:
        screen.print("[bold red]Training on these data would be refused.[/bold red]")
        raise typer.Exit(3)
    if any(finding.severity == "warning" for finding in found.findings):
        screen.print("[yellow]Nothing forbids training on these data; look at the warnings first.[/yellow]")
    else:
        screen.print("[green]Nothing speaks against training on these data.[/green]")


@app.command(
    "convert", epilog="Example: pimlip-zoo data convert 'rmd17_aspirin.npz' -o aspirin.lmdb --workers 2"
)
def convert_command(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The store: one file, or a folder of shards.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    shard_size: Annotated[int, typer.Option(min=1, help="Structures in a shard.")] = 100_000,
    skip_bad: Annotated[
        bool, typer.Option(help="Leave out structures that cannot be used, and list them.")
    ] = False,
    float32: Annotated[bool, typer.Option(help="Positions and forces in single precision.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a store that is there.")] = False,
    restart: Annotated[bool, typer.Option(help="Do not go on with an interrupted conversion.")] = False,
    level_of_theory: Annotated[
        str | None, typer.Option(help="Goes into the store: PBE, GFN2-xTB, ...")
    ] = None,
) -> None:
    """Write structures into an LMDB store. Run again after an interruption: it goes on where it stopped."""
    from rich.markup import escape

    from pimlip_zoo.cli.console import console
    from pimlip_zoo.datasets.convert import convert

    meta = {"level_of_theory": level_of_theory} if level_of_theory else {}
    with _progress("structures") as advance:
        result = convert(
            data,
            out,
            workers=workers,
            shard_frames=shard_size,
            skip_bad=skip_bad,
            float32=float32,
            overwrite=overwrite,
            restart=restart,
            meta=meta,
            progress=advance,
        )
    screen = console()
    for reason in result.reasons[:20]:
        screen.print(f"left out: {reason}")
    if result.not_kept:
        kinds = escape(", ".join(result.not_kept[:_MOST_KINDS]))
        more = f" and {len(result.not_kept) - _MOST_KINDS} more" if len(result.not_kept) > _MOST_KINDS else ""
        screen.print(f"[yellow]not kept[/yellow], because a store has no place for it: {kinds}{more}")
    left_out = f", {result.skipped} left out" if result.skipped else ""
    screen.print(f"{result.frames} structures in {result.path}{left_out}")


@app.command("split", epilog="Example: pimlip-zoo data split md.extxyz -o split.json --method time --gap 20")
def split_command(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file of indices.")] = Path("split.json"),
    method: Annotated[str, typer.Option(help="random, time, composition, group or farthest.")] = "random",
    sizes: Annotated[str, typer.Option(help="Shares or counts of train, valid, test.")] = "0.8,0.1,0.1",
    seed: Annotated[int | None, typer.Option(help="Of random choices; 0.")] = None,
    by: Annotated[
        str | None, typer.Option(help="The key that tells groups apart: config_type, smiles, ...")
    ] = None,
    gap: Annotated[
        int | None, typer.Option(min=0, help="Of time: frames left out between blocks; none.")
    ] = None,
    blocks: Annotated[int | None, typer.Option(min=2, help="Of time: how many blocks; 10.")] = None,
) -> None:
    """Divide a set into training, validation and test frames; read them as DATA@split.json:train."""
    from pimlip_zoo.cli.console import console
    from pimlip_zoo.datasets.audit import survey_frames
    from pimlip_zoo.datasets.readers import parse_spec, read_frames
    from pimlip_zoo.datasets.splits import make_split, write_split
    from pimlip_zoo.errors import InputError
    from pimlip_zoo.outputs import check_output, results

    of_method = {"--gap": (gap, "time"), "--blocks": (blocks, "time"), "--by": (by, "group")}
    for name, (given, reader) in of_method.items():
        if given is not None and method != reader:
            raise InputError(f"has no effect with --method {method}", key=name, hint=f"--method {reader}")
    check_output(out, results("fingerprint"), key="--out")
    sources = parse_spec(data)
    if len(sources) > 1 or sources[0].frames != slice(None):
        raise InputError(
            "a split is of one file or store as a whole",
            key=f"data {data!r}",
            hint="put the structures together first: pimlip-zoo data convert DATA -o ALL.lmdb",
        )
    groups: list[str] = []

    def frames() -> Iterator[Frame]:
        for index, frame in enumerate(read_frames(data)):
            if by is not None:
                if by not in frame.info:
                    raise InputError(f"has no {by!r}", file=data, frame=index, key="--by")
                groups.append(str(frame.info[by]))
            yield frame

    with _progress("structures") as advance:
        survey = survey_frames(data, frames(), progress=advance)
    numbers = {"seed": seed, "gap": gap, "blocks": blocks}
    chosen = {name: value for name, value in numbers.items() if value is not None}
    split = make_split(survey, groups or None, method=method, sizes=sizes, **chosen)
    write_split(split, out)
    for name, part in split.parts.items():
        path, mark, options = data.partition("?")
        console().print(f"{name:6s} {len(part):8d}   {path}@{out}:{name}{mark}{options}")


@app.command("get", epilog="Example: pimlip-zoo data get spice-1 -o data")
def get_command(
    name: Annotated[str | None, typer.Argument(help="A known set; without a name they are listed.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder.")] = Path(),
    address: Annotated[str | None, typer.Option(help="A mirror: another address of the same file.")] = None,
    checksum: Annotated[
        str | None, typer.Option(help="md5:... or sha256:..., for sets without a known one.")
    ] = None,
    unverified: Annotated[
        bool, typer.Option(help="Take the file as it comes, where no checksum is known.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Fetch a published data set. Its licence and citation are shown first."""
    from pimlip_zoo.cli.console import console
    from pimlip_zoo.datasets.catalogue import KNOWN_SETS, known_set
    from pimlip_zoo.datasets.download import check_installed, download
    from pimlip_zoo.errors import InputError

    screen = console()
    if name is None:
        for known in KNOWN_SETS.values():
            screen.print(f"{known.name:24s} {known.level_of_theory:28s} {known.citation}")
        return
    known = known_set(name)
    check_installed()
    expected = checksum or known.checksum
    for label, text in (
        ("address", address or known.address),
        ("checksum", expected or "none is known"),
        ("page", known.page),
        ("licence", known.licence),
        ("citation", known.citation),
        ("method", known.level_of_theory),
        ("remark", known.remark),
    ):
        if text:
            screen.print(f"{label:9s} {text}")
    if expected is None and not unverified:
        raise InputError(
            "no checksum of this file is known",
            key=name,
            hint="give one with --checksum sha256:..., or take it as it comes with --unverified",
        )
    if not yes:
        typer.confirm("Fetch it?", abort=True)
    target = out / known.file
    with _progress("bytes") as advance:
        sha256 = download(address or known.address, target, checksum=expected, progress=advance)
    screen.print(f"sha256:{sha256}")
    screen.print(f"{target}{known.options}")


@app.command("builtin", epilog="Example: pimlip-zoo data builtin methanol-cbs")
def builtin_command(
    name: Annotated[str | None, typer.Argument(help="A set; without a name all are listed.")] = None,
) -> None:
    """The sets that come with the package, for --data builtin:NAME/SPLIT; with a name how it was made."""
    from rich.markup import escape

    from pimlip_zoo.cli.console import console
    from pimlip_zoo.datasets.builtin import builtin_names, builtin_provenance, builtin_splits

    screen = console()
    if name is not None:
        splits = builtin_splits(name)
        for key, value in {**builtin_provenance(name), "splits": splits}.items():
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            screen.print(f"{key:18s} {escape(str(text))}")
        return
    for known in builtin_names():
        counts = ", ".join(f"{split} {count}" for split, count in builtin_splits(known).items())
        level = str(builtin_provenance(known)["level_of_theory"]).split(",")[0].split(" (")[0]
        screen.print(f"builtin:{known:14s} {escape(level)}")
        screen.print(f"{'':22s} {counts}")


def _labels(text: str | None) -> list[str]:
    from pimlip_zoo.errors import InputError, did_you_mean

    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if name not in ("energy", "forces", "stress"):
            raise InputError(
                f"{name!r} is no label",
                key="--labels",
                hint=did_you_mean(name, ("energy", "forces", "stress")),
            )
    return names


class _progress:  # noqa: N801 - reads as a function
    """A bar on terminals, nothing elsewhere."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._what, screen = what, Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=screen,
            transient=True,
            disable=not screen.is_terminal,  # elsewhere nothing of it would be seen but an empty line
        )

    def __enter__(self) -> Self:
        self._task = self._bar.add_task(self._what, total=None, rate="")
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int | None = None, what: str | None = None) -> None:
        speed = self._bar.tasks[0].speed
        self._bar.update(
            self._task,
            completed=done,
            total=total,
            description=what or self._what,
            rate=f"{speed:.0f}/s" if speed else "",
        )
