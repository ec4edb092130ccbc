"""Options that another option of the same command leaves without effect."""

from __future__ import annotations

from collections.abc import Mapping


def refuse(message: str, hint: str, options: Mapping[str, object]) -> None:
    """Refuse the first option that was given.

    Args:
        message: why it would change nothing.
        hint: what to do.
        options: values by the names of the options; None, False and nothing: not given.

    Raises:
        InputError: naming the option.
    """
    from pimlip_zoo.errors import InputError

    for name, given in options.items():
        if given:
            raise InputError(message, key=name, hint=hint)
