"""The base of all sections of the config. Unknown keys are errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from preftune.config.load import config_error


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    if not TYPE_CHECKING:  # type checkers derive the signature from the fields

        def __init__(self, **values):
            """Raise ConfigError where pydantic raises ValidationError."""
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise config_error(type(self), error, {}, type(self).__name__) from None

        # pydantic then skips this __init__ for nested sections, so the paths in their errors stay complete
        __init__.__pydantic_base_init__ = True

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bool_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        allowed = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and allowed & {int, float} and bool not in allowed:
            raise ValueError("must be a number, not true or false")
        return value
