"""What every part of the configuration is derived from, and how the options of a registered thing are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pimlip_zoo.errors import InputError, did_you_mean

__all__ = ["Section", "parse_options"]


class Section(BaseModel):
    """A part of the configuration, which knows its options."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)


Options = TypeVar("Options", bound=BaseModel)


def parse_options(kind: type[Options], options: Mapping[str, Any], key: str) -> Options:
    """Options as the type that something was registered with.

    Args:
        kind: the type.
        options: by name.
        key: of the configuration, under which they stand.

    Raises:
        InputError: for what the type does not allow, with the nearest option that it has.
    """
    for name in options:
        if name not in kind.model_fields:
            raise InputError(
                "there is no such option", key=f"{key}.{name}", mend=did_you_mean(name, kind.model_fields)
            )
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([key, *map(str, first["loc"])])
        raise InputError(first["msg"], key=place) from error
