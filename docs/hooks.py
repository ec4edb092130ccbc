"""What the site is built with: the table of every option, made from the typed configuration."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

MARK = "<!-- options -->"


class Option(typing.NamedTuple):
    """One option of a run."""

    key: str
    kind: str
    default: str
    text: str


def on_page_markdown(markdown: str, **kwargs: Any) -> str:  # noqa: ARG001
    """Put the table where a page wants it; mkdocs calls this for every page."""
    return markdown.replace(MARK, options_table()) if MARK in markdown else markdown


def options_table() -> str:
    """One table for each section."""
    from pimlip_zoo.config import RunConfig

    sections: dict[str, list[Option]] = {}
    for option in options_of(RunConfig):
        sections.setdefault(option.key.split(".")[0] if "." in option.key else "run", []).append(option)
    titled = {f"`{section}`": members for section, members in sections.items()} | registered_options()
    lines: list[str] = []
    for title, members in titled.items():
        lines += [f"### {title}", "", "| option | type | default | |", "|---|---|---|---|"]
        for key, kind, default, text in members:
            lines.append(f"| `{key}` | {_cell(kind)} | {_cell(default)} | {_cell(text)} |")
        lines.append("")
    return "\n".join(lines)


def registered_options() -> dict[str, list[Option]]:
    """The options of what is registered, by the heading of their table."""
    from pimlip_zoo.config import LossSection
    from pimlip_zoo.consistency.displacements import DISPLACEMENTS
    from pimlip_zoo.consistency.residuals import RESIDUALS
    from pimlip_zoo.losses.base import LOSSES
    from pimlip_zoo.weak_labels.calculators import CALCULATORS
    from pimlip_zoo.weak_labels.recipe import RECIPES

    found: dict[str, list[Option]] = {}
    for heading, prefix, registry in (
        ("`weak.labels` of the recipe `{}`", "weak.labels.", RECIPES),
        ("`weak.labels.calculator={}?OPTION=VALUE`", "", CALCULATORS),
        ("`weak.perturbation` of the displacement `{}`", "weak.perturbation.", DISPLACEMENTS),
        ("`weak.terms.{}`", "weak.terms.{}.options.", RESIDUALS),
        ("`loss.{}`", "loss.{}.", LOSSES),
    ):
        for name, one in registry.all().items():
            options = list(options_of(one.options, prefix.format(name))) if one.options is not None else []
            listed = registry is LOSSES and name in LossSection.model_fields  # in the section's own table
            if options and not listed:
                found[heading.format(name)] = options
    return found


def options_of(model: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    """Every option below a section, by dotted key."""
    for name, field in model.model_fields.items():
        key = prefix + name
        inner = [
            part
            for part in _parts(field.annotation)
            if isinstance(part, type) and issubclass(part, BaseModel)
        ]
        if inner:
            member = {dict: ".NAME.", tuple: "[]."}.get(typing.get_origin(field.annotation), ".")
            yield from options_of(inner[0], key + member)
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else _plain(default)
        bounds = [bound for part in field.metadata if (bound := _bound(part))]
        kind = ", ".join([_kind(field.annotation), *bounds])
        yield Option(key, kind, shown, " ".join((field.description or "").split()))


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in typing.get_args(annotation):
        yield from _parts(argument)


def _kind(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(str(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(part) for part in arguments)
    if origin is typing.Annotated:
        return ", ".join([_kind(arguments[0]), *filter(None, map(_bound, arguments[1:]))])
    if origin in (list, tuple, dict):
        inner = ", ".join("..." if part is Ellipsis else _kind(part) for part in arguments)
        return f"{origin.__name__} of {inner}"
    return {
        "NoneType": "null",
        "str": "text",
        "int": "integer",
        "float": "number",
        "bool": "true or false",
    }.get(getattr(annotation, "__name__", str(annotation)), str(annotation))


def _bound(part: Any) -> str:
    names = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return " ".join(f"{sign} {getattr(part, name)}" for name, sign in names.items() if hasattr(part, name))


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
