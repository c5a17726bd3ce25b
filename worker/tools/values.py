"""What goes into a tool and what comes out of it: arguments by its types, results as JSON."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from turnline.contracts.schema_bounds import one_line
from turnline.worker.pipeline.aggregators import to_json
from turnline.worker.pipeline.context import COMPLETED
from turnline.worker.tools.declaration import ToolFailed
from turnline.worker.tools.description import Described
from turnline.worker.tools.types import adapted, dumped, is_pydantics, plain


class NotJson(ToolFailed):
    """A tool returned what JSON does not have."""


def decoded(arguments: Mapping[str, Any], described: Described) -> dict[str, Any]:
    """Return a function's arguments, by the names of its parameters.

    Raises:
        ToolFailed: They do not fit; the text is for the model.
    """
    kind = described.arguments
    try:
        try:
            made = msgspec.convert(arguments, kind, dec_hook=adapted, str_keys=True)
        except msgspec.ValidationError:  # 1.0 is an integer, as JSON Schema has it
            made = msgspec.convert(
                _with_whole_numbers(arguments), kind, dec_hook=adapted, str_keys=True
            )
    except (msgspec.ValidationError, UnicodeError, RecursionError) as error:
        raise ToolFailed(one_line(f"The arguments do not fit: {error}")) from None
    return {field: plain(getattr(made, field)) for field in kind.__struct_fields__}


def _with_whole_numbers(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            fields = cast("dict[str, Any]", value)
            return {name: _with_whole_numbers(it) for name, it in fields.items()}
        case list():
            return [_with_whole_numbers(it) for it in cast("Sequence[Any]", value)]
        case _:
            return value


def result_text(result: Any) -> str:
    """Return a result as text for the model: text as it is, None as a word, all else as JSON.

    Raises:
        NotJson: It has no JSON form.
    """
    if isinstance(result, str):
        return str.__str__(result)  # not what a class made of it
    if result is None:
        return COMPLETED
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise NotJson("The tool returned a generator, not a value.")
    try:
        return to_json(msgspec.to_builtins(result, str_keys=True, enc_hook=_plain))
    except RecursionError:
        raise NotJson("The tool returned something that contains itself or nests deep.") from None
    except ValueError:
        raise NotJson("The tool returned a number that JSON does not have.") from None
    except Exception:  # noqa: BLE001  foreign objects; their errors may hold user text
        raise NotJson("The tool returned something that is not JSON.") from None


def _plain(value: Any) -> Any:
    """Return the JSON form of what msgspec does not know: models of pydantic's."""
    if is_pydantics(type(value)):
        return dumped(value)
    raise TypeError
