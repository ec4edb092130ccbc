"""What every part of the configuration is derived from, and how the options of a registered thing are read."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from pimlip_zoo.errors import InputError, did_you_mean

_MOST = 2**63
"""Whole numbers that are larger in size have no place in arrays and files."""


def number_given_as_truth(value: Any, kind: Any) -> bool:
    """Whether a truth value stands where a number is expected; pydantic would take YAML's ``yes`` as 1.

    Args:
        value: what is given.
        kind: the annotation of the option.
    """
    kinds = _kinds(kind)
    return isinstance(value, bool) and bool not in kinds and (int in kinds or float in kinds)


def number_too_large(value: Any, kind: Any) -> bool:
    """Whether a whole number, where no other is expected, does not fit 64 bits.

    Args:
        value: what is given.
        kind: the annotation of the option.
    """
    return isinstance(value, int) and not -_MOST < value < _MOST and float not in _kinds(kind)


def _kinds(kind: Any) -> list[Any]:
    kinds = [kind]
    for part in kinds:  # of a union, of Annotated
        if get_origin(part) in (Annotated, Union, UnionType):
            kinds += get_args(part)
    return kinds


class Section(BaseModel):
    """A part of the configuration, which knows its options."""

    model_config = ConfigDict(
        extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_that_can_be(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's ``yes`` and ``true`` would be taken as the number 1; whole numbers have to fit 64 bits."""
        if info.field_name is None:
            return value
        kind = cls.model_fields[info.field_name].annotation
        if number_given_as_truth(value, kind):
            raise ValueError(f"{str(value).lower()} is no number")
        if number_too_large(value, kind):
            raise ValueError(f"{str(value)[:30]} is too large")
        return value


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
                "there is no such option", key=f"{key}.{name}", hint=did_you_mean(name, kind.model_fields)
            )
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), InputError):
            raise cause from error
        place = ".".join([key, *map(str, first["loc"])])
        raise InputError(first["msg"], key=place) from error
