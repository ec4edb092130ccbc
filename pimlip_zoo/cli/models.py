"""``pimlip-zoo models``."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import typer

from pimlip_zoo.errors import InputError

app = typer.Typer()


@app.command(epilog="Example: pimlip-zoo models nequip")
def models(
    name: Annotated[str | None, typer.Argument(help="One architecture, with its options.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    weak: Annotated[
        bool, typer.Option("--weak", help="Presets, losses and displacements of weak supervision.")
    ] = False,
    recipes: Annotated[bool, typer.Option("--recipes", help="Training recipes instead.")] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Which steps of NAME are compiled, and which are left to torch.")
    ] = False,
    preset: Annotated[
        str | None, typer.Option(help="Of --trace; the architecture's defaults without it.")
    ] = None,
    physics: Annotated[
        bool, typer.Option("--physics", help="What eval --physics measures, of what, with its options.")
    ] = False,
) -> None:
    """List the architectures, or the options and presets of one."""
    import json

    if trace:
        _trace(name, preset, json_output=json_output)
        return
    if preset is not None:
        raise InputError("it goes with --trace; the table of an architecture has all presets", key="--preset")
    if physics:
        from pimlip_zoo.cli.console import console
        from pimlip_zoo.cli.physics import property_table

        table = property_table(json_output=json_output)
        if json_output:
            typer.echo(table)
        else:
            console().print(table)
            console().print("set them with eval --physics --set PROPERTY.OPTION=VALUE")
        return
    if recipes:
        _recipes(json_output=json_output)
        return
    if weak:
        _weak_presets(json_output=json_output)
        return

    from pimlip_zoo.cli.architectures import all_described, describe
    from pimlip_zoo.cli.console import console

    everything = all_described()
    if name is not None and name not in everything:
        from pimlip_zoo.registry import get_model

        everything[name] = describe(get_model(name))  # complains of a name that nobody registered
    described = [everything[name]] if name else list(everything.values())
    if json_output:
        typer.echo(json.dumps(described[0] if name else described, indent=1))
        return
    screen = console()
    screen.print(_options_table(described[0]) if name else _overview(described))
    screen.print("set them with --set model.OPTION=VALUE" if name else _starts(), highlight=False)


def _starts() -> str:
    """The trained potentials that come with the package."""
    from pimlip_zoo.training.shipped import PREFIX, STARTS

    return "\n".join(
        f"train --from {PREFIX}{name} starts from one that comes with the package "
        f"({', '.join(start.checksums)}): {start.summary}"
        for name, start in STARTS.items()
    )


def _trace(name: str | None, preset: str | None, *, json_output: bool) -> None:
    import dataclasses
    import json

    from pimlip_zoo.cli.console import console, plain_table
    from pimlip_zoo.compiled.sweeps.describe import described
    from pimlip_zoo.registry import get_model

    if name is None:
        raise InputError(
            "whose steps?", key="--trace", hint="name an architecture: pimlip-zoo models NAME --trace"
        )
    info = get_model(name)
    model = info.model(info.configure(preset, avg_num_neighbors=10.0), ("H", "C", "N", "O"))
    steps = described(model)
    if json_output:
        typer.echo(
            json.dumps(None if steps is None else [dataclasses.asdict(step) for step in steps], indent=1)
        )
        return
    screen = console()
    if steps is None:
        screen.print(
            f"{name} is not traced, and runs by autograd as a whole: none of its modules has a block, or its code "
            "depends on what tensors hold"
        )
        return
    words = {"block": "compiled", "autograd": "autograd", "plain": "as it is"}
    rows = [
        (step.name, step.kind, words[step.how], step.block if step.how == "block" else "") for step in steps
    ]
    screen.print(plain_table("step", "", "how", "block", rows=rows))
    counts = {how: sum(step.how == how for step in steps) for how in words}
    screen.print(
        f"{len(steps)} steps: {counts['block']} compiled, {counts['autograd']} left to autograd, {counts['plain']} as "
        "they are (neither geometry nor parameters enter)"
    )


def _recipes(*, json_output: bool) -> None:
    """With the settings for NequIP and 500 structures of 20 atoms: they may depend on what is trained."""
    import json

    from pimlip_zoo.cli.console import console, plain_table
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
    rows = [
        (
            one.name,
            str(one.version),
            one.summary,
            "\n".join(f"{key}={value}" for key, value in options.items()),
        )
        for one, options in found
    ]
    screen = console()
    screen.print(plain_table("--recipe", "version", "", "options", rows=rows))
    screen.print(
        "shown for 500 structures of 20 atoms; what is given with --set wins, and config.yaml of a run has "
        "what it used"
    )


def _weak_presets(*, json_output: bool) -> None:
    import json

    from rich.markup import escape

    from pimlip_zoo.cli.console import console, plain_table
    from pimlip_zoo.consistency.config import PRESETS, WeakConfig

    kinds = _registered()
    if json_output:
        presets = {
            name: {
                "description": text,
                "options": WeakConfig.model_validate({"preset": name}).model_dump(mode="json"),
            }
            for name, (text, _) in PRESETS.items()
        }
        residuals = kinds.pop("terms").members
        content = {
            "presets": presets,
            "terms": {name: text for name, (text, _) in residuals.items()},
            "options": {name: _fields(options) for name, (_, options) in residuals.items() if options},
        }
        for key, kind in kinds.items():
            content[key] = {
                name: {"description": text, "options": _fields(options)}
                for name, (text, options) in kind.members.items()
            }
        typer.echo(json.dumps(content, indent=1))
        return
    screen = console()
    rows = [(name, text, "\n".join(_dotted("weak", given))) for name, (text, given) in PRESETS.items()]
    screen.print(plain_table("--weak", "", "options", rows=rows))
    for kind in kinds.values():
        members = kind.members.items()
        rows = [(name, escape(text), _listed(options, kind.chosen_by)) for name, (text, options) in members]
        screen.print(plain_table(kind.column, "", "options", rows=rows))
        screen.print(f"set with {escape(kind.usage)}\n")


class _Kind(NamedTuple):
    """Registered things of one kind."""

    column: str
    """The key that their name is the value of, or what they are."""
    usage: str
    """How one of them is chosen, and its options are set."""
    members: dict[str, tuple[str, Any]]
    """By name: what it is, and the type of its options."""
    chosen_by: str | None = None
    """The option that chooses it, and whose default says nothing."""


def _registered() -> dict[str, _Kind]:
    """What weak supervision is made of, and the supervised losses, those of other packages among them."""
    from pimlip_zoo.consistency.displacements import DISPLACEMENTS
    from pimlip_zoo.consistency.residuals import RESIDUALS
    from pimlip_zoo.losses.base import LOSSES
    from pimlip_zoo.weak_labels.calculators import CALCULATORS
    from pimlip_zoo.weak_labels.recipe import RECIPES

    def described(registry: Any) -> dict[str, tuple[str, Any]]:
        return {name: (one.description, one.options) for name, one in registry.all().items()}

    return {
        "terms": _Kind(
            "consistency loss",
            "--set weak.terms.NAME.weight=VALUE and --set weak.terms.NAME.options.OPTION=VALUE",
            {name: (one.equation, one.options) for name, one in RESIDUALS.all().items()},
        ),
        "displacements": _Kind(
            "displacement",
            "--set weak.perturbation.name=NAME and --set weak.perturbation.OPTION=VALUE",
            described(DISPLACEMENTS),
        ),
        "recipes": _Kind(
            "recipe for weak labels",
            "--set weak.labels.method=NAME and --set weak.labels.OPTION=VALUE",
            described(RECIPES),
        ),
        "calculators": _Kind(
            "calculator",
            "--set 'weak.labels.calculator=NAME?OPTION=VALUE&...'; others are run:RUN and MODULE:FACTORY",
            described(CALCULATORS),
        ),
        "losses": _Kind(
            "supervised loss",
            "--set loss.NAME.weight=VALUE and --set loss.NAME.OPTION=VALUE",
            described(LOSSES),
            "weight",
        ),
    }


def _fields(options: Any) -> dict[str, Any]:
    """Type and default of the options of a registered thing."""
    return {
        name: {
            "type": str(getattr(field.annotation, "__name__", field.annotation)),
            "default": field.default,
            "help": " ".join((field.description or "").split()),
        }
        for name, field in options.model_fields.items()
    }


def _listed(options: Any, without: str | None = None) -> str:
    fields = {} if options is None else options.model_fields
    return "\n".join(f"{name}={field.default}" for name, field in fields.items() if name != without)


def _dotted(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [line for name, inner in value.items() for line in _dotted(f"{key}.{name}", inner)]
    return [f"{key}={value}"]


def _overview(described: list[dict[str, Any]]) -> Any:
    from pimlip_zoo.cli.console import plain_table

    rows = []
    for item in described:
        counts = ", ".join(f"{preset} {values['parameters']:,}" for preset, values in item["presets"].items())
        rows.append((item["name"], counts or f"{item['parameters']:,}", item["description"]))
    return plain_table("model", "parameters (H, C, N, O)", "", rows=rows)


def _options_table(item: dict[str, Any]) -> Any:
    from pimlip_zoo.cli.console import plain_table

    presets = item["presets"].values()
    rows = [("[dim]parameters[/dim]", "", *(f"[dim]{p['parameters']:,}[/dim]" for p in presets), "")]
    for name, option in item["options"].items():
        cells = [str(values[name]) if name in values else "" for values in presets]
        rows.append((name, str(option["default"]), *cells, option["help"]))
    title = f"{item['name']}: {item['description']}"
    return plain_table("option", "default", *item["presets"], "", rows=rows, title=title)
