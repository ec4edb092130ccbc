"""What every part of the configuration is derived from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Section"]


class Section(BaseModel):
    """A part of the configuration, which knows its options."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)
