"""Options of a command, made from the fields of its settings, so names, defaults, limits and helps stand once."""

import inspect
import re
from collections.abc import Callable
from functools import wraps
from itertools import chain
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from typer.models import OptionInfo

from cogview3.errors import UserError, said


def with_options(**settings: type[BaseModel]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, instead of each named parameter, one option for every field of that parameter's settings.

    The field `min_side` becomes `--min-side`: its description is the help, its limits and default are the option's. A
    tuple is an option that may be repeated. A `typer.Option` among the field's annotations is taken as it is. Values
    that do not agree with each other are refused by the settings themselves.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            for name, kind in settings.items():
                values = {field: given.pop(field) for field in kind.model_fields}
                given[name] = _made(kind, {field: _value(value, kind, field) for field, value in values.items()})
            command(**given)

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            kind = settings.get(parameter.name)
            own = [_option(*each) for each in kind.model_fields.items()] if kind else [parameter]
            parameters += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        del run.__wrapped__  # whose signature would be read instead
        return run

    return decorate


def _made(kind: type[BaseModel], values: dict[str, Any]) -> BaseModel:
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        names = "|".join(name for name in kind.model_fields if "_" in name)  # others are words of the language too
        message = re.sub(rf"\b({names})\b", lambda found: _flag(found[0]), said(first)) if names else said(first)
        raise UserError(f"{_flag(str(first['loc'][0]))} {first['input']}: {message}") from None


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    kind, limits = _bare(field.annotation)
    limits = [*field.metadata, *limits]
    option = next((each for each in limits if isinstance(each, OptionInfo)), None)
    if option is None:
        least = next((each.ge for each in limits if isinstance(each, Ge)), None)
        most = next((each.le for each in limits if isinstance(each, Le)), None)
        if any(isinstance(each, Gt) and each.gt == 0 for each in limits) and kind is int:
            least = 1
        option = typer.Option(_flag(name), min=least, max=most, help=field.description)
    default = inspect.Parameter.empty if field.is_required() else field.default
    if kind is not bool and field.annotation is not kind and not isinstance(default, tuple):
        kind = kind | None if default is None else kind
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=list(default) if isinstance(default, tuple) else default,
        annotation=Annotated[kind, option],
    )


def _bare(annotation: Any) -> tuple[Any, list[Any]]:
    """The type that an option parses, without None and limits, and these limits; a list for a tuple."""
    if get_origin(annotation) in (Union, UnionType):
        return _bare(next(each for each in get_args(annotation) if each is not type(None)))
    if get_origin(annotation) is Annotated:
        bare, limits = _bare(get_args(annotation)[0])
        more = get_args(annotation)[1:]
        return bare, [*limits, *chain(*(each.metadata if isinstance(each, FieldInfo) else [each] for each in more))]
    if get_origin(annotation) is tuple:
        return list[_bare(get_args(annotation)[0])[0]], []  # type: ignore[misc]
    return annotation, []


def _value(value: Any, kind: type[BaseModel], field: str) -> Any:
    repeated = get_origin(kind.model_fields[field].annotation) is tuple
    return tuple(value or ()) if repeated else value
