"""Checks the course's YAML files with pydantic: a mistake is told with its line, what stands there, and the cure.

The models stand with what is read into them: lesson.yaml in `manifest`, quiz.yaml and article.yaml in `lesson_files`,
claims.yaml in `claim_file`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, ValidationError, WrapValidator

from labkit.course.i18n import LANGUAGES
from labkit.course.yamlfile import Lines


class Strict(BaseModel):
    """A YAML mapping with these fields and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def expected(words: str) -> WrapValidator:
    """For `Annotated`: whatever is wrong in this field, the cure is `words` and not pydantic's own message."""

    def check(value: Any, validate: Any) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(words) from None

    return WrapValidator(check)


def must(hold: Callable[[Any], bool], words: str) -> AfterValidator:
    """For `Annotated`: `hold` is true of the value, else the cure is `words`."""

    def check(value: Any) -> Any:
        if not hold(value):
            raise ValueError(words)
        return value

    return AfterValidator(check)


def each(names: tuple[str, ...], kind: Any) -> Any:
    """The type of a mapping from exactly these names to values of `kind`."""
    complete = must(lambda value: set(value) == set(names), f"one entry for each of {', '.join(names)}")
    return Annotated[dict[Literal[names], kind], complete]


def with_different_ids(entries: list) -> list:
    """For `AfterValidator`: the same entries, or a ValueError that names an id which stands there twice."""
    ids = [entry.id for entry in entries]
    if twice := sorted({id for id in ids if ids.count(id) > 1}):
        raise ValueError(f"different ids: {', '.join(twice)} must appear once only; rename one")
    return entries


Filled = Annotated[str, Field(pattern=r"\S"), expected("a text")]
Bilingual = Annotated[each(LANGUAGES, Filled), expected("{en: text, ja: text}")]
Number = Annotated[StrictInt | Annotated[float, Field(strict=True, allow_inf_nan=False)], expected("a number")]


def problems(error: ValidationError, kind: Any, lines: Lines) -> Iterator[tuple[int, str, str]]:
    """Everything that pydantic found wrong with a file of the type `kind`: (line, what is wrong, how to mend it)."""
    for one in error.errors():
        where = one["loc"]
        line = next(lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in lines)
        name = ".".join(map(str, where)) or "the file"
        if one["type"] == "missing":
            yield line, f"{name} is missing", f"fields are {_fields(kind, where[:-1])}"
        elif one["type"] == "extra_forbidden":
            yield line, f"unknown key {name!r}", f"fields are {_fields(kind, where[:-1])}"
        else:
            words = "'field: value' lines" if one["type"] == "model_type" else one["msg"]
            words = words.removeprefix("Value error, ").removeprefix("Input should be ")
            yield line, f"{name} is {one['input']!r:.60}", f"expected {words}"


def _fields(kind: Any, where: tuple) -> str:
    if get_origin(kind) is Annotated:
        return _fields(get_args(kind)[0], where)
    if where:
        inner = kind.model_fields[where[0]].annotation if isinstance(where[0], str) else get_args(kind)[0]
        return _fields(inner, where[1:])
    return ", ".join(field.alias or name for name, field in kind.model_fields.items() if not field.exclude)
