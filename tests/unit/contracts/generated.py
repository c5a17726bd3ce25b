"""Hypothesis strategies made from the structs themselves, so that no field can be left out."""

import string
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from turnline.contracts.conversation import (
    FUNCTION_NAME_PATTERN,
    ID_PATTERN,
    TENANT_PATTERN,
    URL_PATTERN,
    AssistantEntry,
    PlacedItem,
    SettingsChange,
    TextPart,
)
from turnline.contracts.errors import InvalidMessage
from turnline.contracts.messages import Feedback, UserMessage
from turnline.contracts.replies import TurnRecord
from turnline.contracts.server_tools import (
    DOMAIN_PATTERN,
    HANDLE_PATTERN,
    HEADER_NAME_PATTERN,
    HEADER_VALUE_PATTERN,
    HTTPS_PATTERN,
    LABEL_PATTERN,
    Mcp,
    WebSearch,
    XSearch,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ITEMS = st.dictionaries(TEXTS, JSON, max_size=3).map(lambda it: {**it, "type": "reasoning"})
NOT_IN_IDS = "{}\ufffc\ufffd"
"""What shows, and yet no id has it: braces, and what stands for something that is missing."""
_LETTERS = st.characters(categories=["L", "N", "P", "S"], exclude_characters=NOT_IN_IDS)
IDS = st.text(_LETTERS, min_size=1, max_size=200)
_BY_PATTERN = {
    ID_PATTERN: IDS,
    TENANT_PATTERN: IDS | st.just(""),
    URL_PATTERN: TEXTS.map("https://example.com/{}".format),
    FUNCTION_NAME_PATTERN: st.text(string.ascii_letters + "_.-0", min_size=1, max_size=64),
    DOMAIN_PATTERN: st.from_regex(r"[a-z]{1,9}\.[a-z]{2}", fullmatch=True),
    HANDLE_PATTERN: st.text(string.ascii_letters + "_0", min_size=1, max_size=20),
    HTTPS_PATTERN: st.from_regex(
        r"https://[a-z]{1,9}\.org(:[0-9]{2})?(/[a-z?=]*)?", fullmatch=True
    ),
    LABEL_PATTERN: st.text(string.ascii_letters + "_-0", min_size=1, max_size=64),
    HEADER_NAME_PATTERN: st.sampled_from(["X-Tenant", "Authorization", "x"]),
    HEADER_VALUE_PATTERN: st.text(string.printable[:95], min_size=1, max_size=20),
}


def structs(cls: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Valid values of one struct, each field anything that its type allows."""
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    fields = {field.name: _values(field.type) | _unset(field) for field in info.fields}
    match cls.__name__:
        case UserMessage.__name__:
            text = st.fixed_dictionaries({"text": TEXTS.filter(bool)})
            parts = st.fixed_dictionaries({"parts": fields.pop("parts").filter(bool)})
            del fields["text"]
            return st.builds(
                lambda a, b: cls(**a, **b), st.fixed_dictionaries(fields), text | parts
            )
        case AssistantEntry.__name__:
            contents = st.fixed_dictionaries(fields)
            return contents.filter(lambda c: c["content"] is not None or c["tool_calls"]).map(
                lambda c: _with_fitting_items(cls(**c))
            )
        case (
            SettingsChange.__name__
            | WebSearch.__name__
            | XSearch.__name__
            | Mcp.__name__
            | Feedback.__name__
        ):
            return st.fixed_dictionaries(fields).filter(_is_consistent(cls)).map(lambda c: cls(**c))
        case PlacedItem.__name__:
            fields["item"] = ITEMS.map(lambda value: msgspec.Raw(msgspec.json.encode(value)))
        case TurnRecord.__name__:
            fields["event"] = JSON.map(lambda value: msgspec.Raw(msgspec.json.encode(value)))
        case _:
            pass
    return st.builds(cls, **fields)


def _with_fitting_items(entry: Any) -> Any:
    """Put the items of a reply where they may stand: at the end of the entry, all of them."""
    if entry.reply_items is None:
        return entry
    parts = entry.content if isinstance(entry.content, tuple) else ()
    said = entry.content if isinstance(entry.content, str) else ""
    said += "".join(part.text for part in parts if isinstance(part, TextPart))
    place = {"chars": len(said), "calls": len(entry.tool_calls)}
    items = tuple(msgspec.structs.replace(it, **place) for it in entry.reply_items.items)
    return msgspec.structs.replace(
        entry, reply_items=msgspec.structs.replace(entry.reply_items, items=items)
    )


def _is_consistent(cls: type[msgspec.Struct]) -> Callable[[dict[str, Any]], bool]:
    def is_consistent(fields: dict[str, Any]) -> bool:
        try:
            cls(**fields)
        except InvalidMessage:
            return False
        return True

    return is_consistent


def _unset(field: inspect.Field) -> st.SearchStrategy[Any]:
    """What stands for an absent field of a change, which has no default to show."""
    has_default = (
        field.default is not msgspec.NODEFAULT or field.default_factory is not msgspec.NODEFAULT
    )
    is_unset = not field.required and not has_default
    return st.just(msgspec.UNSET) if is_unset else st.nothing()


def _values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType(ge=low, le=high):
            return st.integers(low if low is not None else -(2**53), high or 2**53)
        case inspect.FloatType(gt=above, ge=low, le=high):
            least = low if above is None else above
            return st.floats(  # what JSON has a word for
                least, high, exclude_min=above is not None, allow_nan=False, allow_infinity=False
            )
        case inspect.StrType(pattern=str(pattern)):
            return _BY_PATTERN[pattern]
        case inspect.StrType(min_length=least, max_length=most):
            return st.text(
                st.characters(exclude_categories=["Cs"]), min_size=least or 0, max_size=most and 30
            )
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case inspect.UnionType(types=types):
            return st.one_of(*map(_values, types))
        case inspect.DateType():
            return st.dates()
        case inspect.VarTupleType(item_type=item, min_length=least):
            return st.lists(_values(item), min_size=least or 0, max_size=3).map(tuple)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(_values(key), _values(value), max_size=3)
        case inspect.StructType(cls=cls):
            return structs(cls)
        case inspect.Metadata(type=inner):
            return _values(inner)
        case inspect.AnyType() | inspect.RawType():
            return JSON
    raise AssertionError(f"no strategy for {kind}")
