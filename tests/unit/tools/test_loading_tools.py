"""What a function becomes as a tool, and how modules that are wrong are named."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from turnline.worker.tools import Tool, ToolContext, tool
from turnline.worker.tools.description import describe
from turnline.worker.tools.loader import load_tools
from turnline.worker.tools.types import BadTool


class Address(msgspec.Struct):
    """Where to."""

    city: str


@tool
async def ship(  # noqa: D417  as a tool's author may write it
    context: ToolContext[None],
    number: int,
    to: Address,
    speed: Literal["slow", "fast"] = "slow",
    notes: list[str] = [],  # noqa: B006
    weight: Annotated[float, msgspec.Meta(gt=0, description="In kg.")] = 1.0,
) -> None:
    """Ship an order.

    Takes a while.

    Args:
        number: The order's number,
            as printed.
        speed (str): How fast.

    Returns:
        Nothing.
    """


def test_the_schema_comes_from_the_signature() -> None:
    """Types, defaults, descriptions; the context is no argument."""
    definition, arguments, context, is_async, _ = describe(ship)

    assert (definition.name, definition.description) == ("ship", "Ship an order.\n\nTakes a while.")
    assert (context, is_async) == ("context", True)
    parameters = definition.parameters
    assert parameters["type"] == "object"
    assert parameters["required"] == ["number", "to"]
    assert parameters["additionalProperties"] is False
    properties = parameters["properties"]
    assert list(properties) == ["number", "to", "speed", "notes", "weight"]
    assert properties["number"] == {
        "type": "integer",
        "description": "The order's number, as printed.",
    }
    assert properties["speed"]["enum"] == ["fast", "slow"] or properties["speed"]["enum"] == [
        "slow",
        "fast",
    ]
    assert properties["speed"]["description"] == "How fast."
    assert properties["weight"]["description"] == "In kg."
    assert parameters["$defs"]["Address"]["required"] == ["city"]
    decoded: Any = msgspec.convert({"number": 1, "to": {"city": "Oslo"}}, arguments)
    assert decoded.to == Address("Oslo")
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"number": 1, "to": {"city": "Oslo"}, "more": 1}, arguments)


def undocumented(number: int) -> None: ...


def unannotated(number) -> None:  # type: ignore[no-untyped-def]
    """Do."""


def variadic(*numbers: int) -> None:
    """Do."""


def unnameable(number: int, /) -> None:
    """Do."""


def unencodable(number: Callable[[], int]) -> None:
    """Do."""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (undocumented, "no docstring"),
        (unannotated, "number has no annotation"),
        (variadic, "names each argument"),
        (unnameable, "possible to name"),
        (unencodable, "no JSON Schema"),
    ],
)
def test_what_cannot_be_a_tool_is_told(function: Callable[..., None], words: str) -> None:
    """Each by its reason."""
    with pytest.raises(BadTool, match=words):
        describe(tool(function))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (tool(name="no spaces")(undocumented), "letters, digits"),
        (tool(timeout_s=0)(undocumented), "timeout_s"),
        (tool(max_concurrency=0)(undocumented), "max_concurrency"),
    ],
)
def test_options_are_checked(made: Tool[..., None], words: str) -> None:
    """Each by its name."""
    with pytest.raises(BadTool, match=words):
        describe(made)


def test_a_tool_can_still_be_called() -> None:
    """The decorator leaves the function as it is."""

    @tool
    def double(number: int) -> int:
        """Double."""
        return 2 * number

    assert double(4) == 8


def test_modules_are_loaded_and_their_faults_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All faults at once, each with its module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = {
        "good_tools": '''
            from turnline.worker.tools import tool
            def plain(number: int) -> int:
                """Plain."""
                return number
            TOOLS = [plain]
            @tool
            def twice() -> None:
                """Once."""
            def resources():
                pass
        ''',
        "bad_tools": '''
            from turnline.worker.tools import tool
            @tool
            def silent() -> None: ...
            @tool(name="twice")
            def other() -> None:
                """Twice."""
        ''',
        "broken_tools": "1 / 0",
        "empty_tools": "",
    }
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        monkeypatch.delitem(sys.modules, name, raising=False)

    loaded = load_tools("good_tools, bad_tools,broken_tools,empty_tools,absent_tools")

    assert [it.name for it in loaded.tools] == ["twice", "plain", "twice"]
    assert [module for module, _ in loaded.resources] == ["good_tools"]
    assert [problem.partition(":")[0] for problem in loaded.problems] == [
        *("bad_tools.silent", "broken_tools", "empty_tools", "absent_tools", "twice")
    ]


def test_files_of_schemas(tmp_path: Path) -> None:
    """OpenAI's shape, other fields ignored; what is wrong is named by its number."""
    path = tmp_path / "tools.json"
    path.write_text(
        '[{"type": "function", "service": "x", "function": {"name": "a"}, "timeout_s": 5},'
        ' {"type": "function", "function": {"name": "not a name"}}]'
    )

    loaded = load_tools("", f"{path},{tmp_path}/absent.json")

    assert [(it.function.name, it.timeout_s) for it in loaded.schemas] == [("a", 5)]
    assert "tool 2" in loaded.problems[0]
    assert "absent.json" in loaded.problems[1]
