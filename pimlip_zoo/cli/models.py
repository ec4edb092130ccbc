"""``pimlip-zoo models``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer()


@app.command(epilog="Example: pimlip-zoo models nequip")
def models(
    name: Annotated[str | None, typer.Argument(help="One architecture, with its options.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    weak: Annotated[
        bool, typer.Option("--weak", help="Presets, losses and displacements of weak supervision.")
    ] = False,
    recipes: Annotated[bool, typer.Option("--recipes", help="Training recipes instead.")] = False,
) -> None:
    """List the architectures, or the options and presets of one."""
    import json

    if recipes:
        _recipes(json_output=json_output)
        return
    if weak:
        _weak_presets(json_output=json_output)
        return

    from pimlip_zoo.cli.console import console

    everything = _all_described()
    if name is not None and name not in everything:
        from pimlip_zoo.registry import get_model

        everything[name] = _describe(get_model(name))  # complains of a name that nobody registered
    described = [everything[name]] if name else list(everything.values())
    if json_output:
        typer.echo(json.dumps(described[0] if name else described, indent=1))
        return
    screen = console()
    screen.print(_options_table(described[0]) if name else _overview(described))
    if name:
        screen.print("set them with --set model.OPTION=VALUE")


def _all_described() -> dict[str, dict[str, Any]]:
    """What is known of every architecture, by name.

    Counting parameters builds every model, which takes torch and seconds: what was found is kept in the cache until
    this package, or one that offers architectures, changes.
    """
    import json
    import logging

    from pimlip_zoo.files import replacing

    file = _kept_in()
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        pass
    from pimlip_zoo.registry import available_models

    text = json.dumps({name: _describe(info) for name, info in available_models().items()})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:  # a cache that cannot be written costs time and nothing else
        logging.getLogger("pimlip_zoo").debug("%s", error)
    return dict(json.loads(text))


def _kept_in() -> Path:
    """The file, named by a hash of all that the descriptions depend on."""
    import hashlib
    from importlib.metadata import entry_points

    import pimlip_zoo
    from pimlip_zoo.datasets.pool import cache_folder
    from pimlip_zoo.registry import ENTRY_POINT_GROUP

    digest = hashlib.sha256(pimlip_zoo.__version__.encode())
    own = Path(pimlip_zoo.__file__).parent
    sources = (*own.glob("models/*.py"), *own.glob("nn/*.py"), own / "cli" / "models.py", own / "registry.py")
    for path in sorted(sources):
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        version = "" if point.dist is None else f"{point.dist.name} {point.dist.version}"
        digest.update(f"{point.name} {point.value} {version}".encode())
    return cache_folder() / f"models-{digest.hexdigest()[:20]}.json"


def _recipes(*, json_output: bool) -> None:
    """With the settings for NequIP and 500 structures of 20 atoms: they may depend on what is trained."""
    import json

    from rich.table import Table

    from pimlip_zoo.cli.console import console
    from pimlip_zoo.training.recipes import RunFacts, available_recipes

    facts = RunFacts(
        "nequip",
        frozenset(),
        direct=False,
        structures=500,
        labels=("energy", "forces"),
        passes=100.0,
        atoms=10_000,
        labels_counted=30_500,
        validation=50,
    )
    found = [(recipe, dict(recipe.settings(facts))) for recipe in available_recipes()]
    if json_output:
        content = {
            recipe.name: {"version": recipe.version, "description": recipe.summary, "options": options}
            for recipe, options in found
        }
        typer.echo(json.dumps(content, indent=1))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("--recipe", "version", "", "options"):
        table.add_column(column)
    for recipe, options in found:
        lines = "\n".join(f"{key}={value}" for key, value in options.items())
        table.add_row(recipe.name, str(recipe.version), recipe.summary, lines)
    screen = console()
    screen.print(table)
    screen.print(
        "shown for 500 structures of 20 atoms; what is given with --set wins, and config.yaml of a run has "
        "what it used"
    )


def _weak_presets(*, json_output: bool) -> None:
    import json

    from rich.markup import escape
    from rich.table import Table

    from pimlip_zoo.cli.console import console
    from pimlip_zoo.consistency.config import PRESETS, WeakConfig, term_names
    from pimlip_zoo.consistency.displacements import DISPLACEMENTS
    from pimlip_zoo.consistency.residuals import RESIDUALS

    kinds, residuals = DISPLACEMENTS.all(), RESIDUALS.all()
    if json_output:
        presets = {
            name: {
                "description": text,
                "options": WeakConfig.model_validate({"preset": name}).model_dump(mode="json"),
            }
            for name, (text, _) in PRESETS.items()
        }
        content = {
            "presets": presets,
            "terms": term_names(),
            "options": {
                name: _fields(one.options) for name, one in residuals.items() if one.options is not None
            },
            "displacements": {
                name: {"description": kind.description, "options": _fields(kind.options)}
                for name, kind in kinds.items()
            },
        }
        typer.echo(json.dumps(content, indent=1))
        return
    presets_table, terms, displacements = (
        Table(box=None, header_style="bold", pad_edge=False) for _ in range(3)
    )
    for column in ("--weak", "", "options"):
        presets_table.add_column(column)
    for name, (text, options) in PRESETS.items():
        presets_table.add_row(name, text, "\n".join(_dotted("weak", options)))
    for column in ("loss", "", "options"):
        terms.add_column(column)
    for name, residual in residuals.items():
        terms.add_row(f"weak.terms.{name}", escape(residual.equation), _listed(residual.options))
    for column in ("weak.perturbation.name", "", "options"):
        displacements.add_column(column)
    for name, kind in kinds.items():
        displacements.add_row(name, escape(kind.description), _listed(kind.options))
    screen = console()
    for table in (presets_table, terms, displacements):
        screen.print(table)
    screen.print(
        "set them with --set weak.terms.NAME.weight=VALUE, --set weak.terms.NAME.options.OPTION=VALUE"
    )
    screen.print("and --set weak.perturbation.OPTION=VALUE")


def _fields(options: Any) -> dict[str, Any]:
    """Type and default of the options of a registered thing."""
    return {
        name: {"type": str(getattr(field.annotation, "__name__", field.annotation)), "default": field.default}
        for name, field in options.model_fields.items()
    }


def _listed(options: Any) -> str:
    return (
        ""
        if options is None
        else "\n".join(f"{name}={field.default}" for name, field in options.model_fields.items())
    )


def _dotted(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [line for name, inner in value.items() for line in _dotted(f"{key}.{name}", inner)]
    return [f"{key}={value}"]


def _describe(info: Any) -> dict[str, Any]:
    import dataclasses

    presets = {}
    for preset in info.presets:
        presets[preset] = {**info.presets[preset], "parameters": _count(info, preset)}
    return {
        "name": info.name,
        "description": info.description,
        "presets": presets,
        "parameters": None if info.presets else _count(info, None),
        "options": {
            field.name: {
                "type": str(field.type),
                "default": _default(field),
                "help": _help(info.config, field.name),
            }
            for field in dataclasses.fields(info.config)
        },
    }


def _count(info: Any, preset: str | None) -> int:
    model = info.model(info.configure(preset, avg_num_neighbors=10.0), ("H", "C", "N", "O"))
    return sum(parameter.numel() for parameter in model.parameters())


def _default(field: Any) -> Any:
    import dataclasses

    return None if field.default is dataclasses.MISSING else field.default


def _help(config: type, name: str) -> str:
    """The string below a field of a dataclass, from its source."""
    import ast
    import inspect
    import textwrap
    from itertools import pairwise

    for cls in config.__mro__[:-1]:
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError):
            continue
        for node, following in pairwise(body):
            if (
                isinstance(node, ast.AnnAssign)
                and getattr(node.target, "id", None) == name
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                return " ".join(str(following.value.value).split())
    return ""


def _overview(described: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model")
    table.add_column("parameters (H, C, N, O)")
    table.add_column("")
    for item in described:
        counts = ", ".join(f"{preset} {values['parameters']:,}" for preset, values in item["presets"].items())
        table.add_row(item["name"], counts or f"{item['parameters']:,}", item["description"])
    return table


def _options_table(item: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(
        title=f"{item['name']}: {item['description']}",
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for column in ("option", "default", *item["presets"], ""):
        table.add_column(column, overflow="fold")
    table.add_row(
        "[dim]parameters[/dim]",
        "",
        *(f"[dim]{p['parameters']:,}[/dim]" for p in item["presets"].values()),
        "",
    )
    for name, option in item["options"].items():
        cells = [str(values[name]) if name in values else "" for values in item["presets"].values()]
        table.add_row(name, str(option["default"]), *cells, option["help"])
    return table
