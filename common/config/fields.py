"""Field types of the configuration, each with the words that errors and `docs/config.md` use for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.fields import FieldInfo

Split = Literal["train", "val", "test"]
"""Split of the data."""


PrecisionName = Literal["fp32", "tf32", "fp16", "bf16"]
"""Precision of the forward pass."""


@dataclass(frozen=True)
class Allowed:
    """Describes the values of a field.

    Attributes:
        text: completes the sentence "must be".
    """

    text: str


def allowed_text(field: FieldInfo) -> str:
    """Returns the description of the values of this field."""
    texts = [mark.text for mark in field.metadata if isinstance(mark, Allowed)]
    if texts:
        return texts[-1]
    if get_origin(field.annotation) is Literal:
        choices = [
            f'"{value}"' if isinstance(value, str) else str(value) for value in get_args(field.annotation)
        ]
        return " or ".join(choice for choice in choices if choice != '""')
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    return words.get(field.annotation, "a section of keys")  # type: ignore[arg-type]


def _number(value: Any) -> Any:
    """Converts text such as "1e-7", which yaml 1.1 does not parse as a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _gpus(value: Any) -> Any:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "".join(str(value).split()) if isinstance(value, int | str) else value


def _milestones(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value if isinstance(value, tuple) else (value,)


def _pairs(value: Any) -> Any:
    """Splits `"key,Name"` entries into pairs."""
    if not isinstance(value, tuple):
        return value
    return tuple(tuple(entry.split(",")) if isinstance(entry, str) else entry for entry in value)


def holds(test: Callable[[Any], bool]) -> AfterValidator:
    """Rejects values that fail `test`."""

    def check(value: Any) -> Any:
        if not test(value):
            raise ValueError("not allowed")
        return value

    return AfterValidator(check)


def _no_flag(value: Any) -> Any:
    """Rejects `true` as a number: in Python it equals 1."""
    return None if isinstance(value, bool) else value


Natural = Annotated[int, Field(ge=0), Allowed("an integer >= 0")]


Positive = Annotated[int, Field(ge=1), Allowed("an integer >= 1")]


FromMinusOne = Annotated[int, Field(ge=-1), Allowed("an integer >= -1")]


FromThree = Annotated[int, Field(ge=3), Allowed("an integer >= 3")]


Number = Annotated[float, BeforeValidator(_number), Allowed("a number")]


NonNegative = Annotated[Number, Field(ge=0), Allowed("a number >= 0")]


Above0 = Annotated[Number, Field(gt=0), Allowed("a number > 0")]


Probability = Annotated[Number, Field(ge=0, le=1), Allowed("a number from 0 to 1")]


OneToThree = Annotated[Literal[1, 2, 3], BeforeValidator(_no_flag)]


MustBeFalse = Annotated[bool, holds(lambda value: not value), Allowed("false: true is not supported")]


MustBeTrue = Annotated[bool, holds(bool), Allowed("true: false is not supported")]


Gpus = Annotated[
    str,
    BeforeValidator(_gpus),
    Field(pattern=r"^(cpu|\d+(,\d+)*)?$"),
    Allowed('device numbers such as "0,1,2,3", "cpu" or ""'),
]


Scales = Annotated[
    tuple[Positive, ...],
    holds(lambda sizes: len(sizes) in (0, 2)),
    Allowed("[short side, long side], two ascending integers >= 1"),
]


PerChannel = Annotated[
    tuple[Number, ...], holds(lambda values: len(values) in (0, 3)), Allowed("three numbers [B, G, R]")
]


Divisors = Annotated[
    tuple[Above0, ...], holds(lambda values: len(values) in (0, 3)), Allowed("three numbers > 0 [B, G, R]")
]


Stages = Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Allowed("a list of stages from 1 to 5")]


Renames = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[^>]+->[^>]*$")], ...],
    Allowed('a list of "old->new" texts'),
]


Multipliers = Annotated[
    tuple[tuple[str, NonNegative], ...], Allowed("a list of [part of a parameter name, factor >= 0]")
]


Milestones = Annotated[
    tuple[NonNegative, ...],
    BeforeValidator(_milestones),
    Allowed('epochs >= 0 such as "14,18" (a text, a number or a list)'),
]


LossScale = Annotated[Literal["dynamic"] | Above0, Allowed('"dynamic" or a number > 0')]


LossLoggers = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(_pairs),
    Allowed('a list of "loss,Name" texts'),
]


BatchSizes = Annotated[
    Positive | tuple[Positive, ...],
    Allowed("an integer >= 1, or in pretrain a list of them, one for each dataset"),
]
