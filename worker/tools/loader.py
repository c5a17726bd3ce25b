"""Loads modules of tools and files of schemas by name, and says what is wrong with them."""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import msgspec

from turnline.contracts.conversation import ToolDefinition
from turnline.contracts.json_schemas import Schemas
from turnline.contracts.schema_bounds import BadSchema
from turnline.worker.files import UnusableFile, read_json
from turnline.worker.logs import places, type_name
from turnline.worker.tools.declaration import Tool, ToolOptions, name_of
from turnline.worker.tools.description import Described, describe
from turnline.worker.tools.types import BadTool
from turnline.worker.turn.plan import MOST_TOOLS

OpenResources = Callable[[], AbstractAsyncContextManager[Any]]


class LoadedTool(NamedTuple):
    """A tool that this worker runs itself."""

    module: str
    tool: Tool[Any, Any]
    described: Described

    @property
    def name(self) -> str:
        """As the model names it."""
        return self.described.definition.name

    @property
    def options(self) -> ToolOptions:
        """How it is run."""
        return self.tool.options


class LoadedTools(NamedTuple):
    """What a worker would offer."""

    tools: tuple[LoadedTool, ...]
    resources: tuple[tuple[str, OpenResources], ...]
    """(module, what opens its resources)."""
    schemas: tuple[ToolDefinition, ...]
    """Tools that somebody else runs."""
    problems: tuple[str, ...]
    """What is wrong, one line each; a worker does not start with any."""


def load_tools(modules: str, schemas: str = "") -> LoadedTools:
    """Load modules by name and files of schemas by path, both separated by commas.

    Modules in the working directory are found, however the program was started.
    """
    if modules and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    tools: list[LoadedTool] = []
    resources: list[tuple[str, OpenResources]] = []
    problems: list[str] = []
    for name in _words(modules):
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:  # noqa: BLE001  foreign code; its author has to hear of it
            problems.append(f"{name}: it cannot be imported: {_what(error)}")
            continue
        found = list(_tools_of(module, problems))
        if not found:
            problems.append(f"{name}: it has no tools: decorate functions with @tool")
        tools += found
        opened = getattr(module, "resources", None)
        if callable(opened):
            resources.append((name, cast("OpenResources", opened)))
    definitions = [it for path in _words(schemas) for it in _read_schemas(Path(path), problems)]
    names = [*(it.name for it in tools), *(it.function.name for it in definitions)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    problems += [f"{name}: several tools have this name" for name in repeated]
    if len(names) > MOST_TOOLS:
        problems.append(f"{len(names)} tools: a model takes {MOST_TOOLS} at most")
    return LoadedTools(tuple(tools), tuple(resources), tuple(definitions), tuple(problems))


def _what(error: BaseException) -> str:
    """Say what an import raised: in words where these are Python's own, else type and place."""
    if isinstance(error, (ImportError, NameError, SyntaxError)):
        return f"{type_name(error)}: {error}"
    return f"{type_name(error)} ({', '.join(places(error.__traceback__)[-1:])})"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _tools_of(module: ModuleType, problems: list[str]) -> Iterator[LoadedTool]:
    """Yield the tools of a module: decorated ones, and plain functions that `TOOLS` names."""
    declared: list[Tool[Any, Any]] = [it for it in vars(module).values() if isinstance(it, Tool)]
    for listed in cast("Sequence[Any]", getattr(module, "TOOLS", ())):
        made = _as_tool(listed)
        if made is None:
            problems.append(f"{module.__name__}: TOOLS holds something that is no function")
        elif made not in declared:
            declared.append(made)
    for it in declared:
        try:
            yield LoadedTool(module.__name__, it, describe(it))
        except BadTool as error:
            problems.append(f"{module.__name__}.{it.options.name}: {error}")


def _as_tool(function: Any) -> Tool[Any, Any] | None:
    if isinstance(function, Tool):
        return cast("Tool[Any, Any]", function)  # type: ignore[redundant-cast]  # pyright needs it
    if not callable(function):
        return None
    return Tool(function, ToolOptions(name=name_of(function)))


_FIELDS = ("function", "type", "timeout_s")


def _read_schemas(path: Path, problems: list[str]) -> list[ToolDefinition]:
    """Read a file of tools in the shape of OpenAI's API."""
    try:
        elements = msgspec.convert(read_json(path), list[Any])
    except UnusableFile as error:
        problems.append(f"{path}: {error}")
        return []
    except msgspec.ValidationError:
        problems.append(f"{path}: it is no list of tools")
        return []
    definitions: list[ToolDefinition] = []
    schemas = Schemas()
    for number, element in enumerate(elements):
        try:
            definition = msgspec.convert(_given(element), ToolDefinition)
            schemas.of_arguments(definition.function.parameters)
        except msgspec.ValidationError as error:
            problems.append(f"{path}, tool {number + 1}: {error}")
        except BadSchema as error:
            problems.append(f"{path}, tool {number + 1}: parameters: {error}")
        else:
            definitions.append(definition)
    return definitions


def _given(element: Any) -> Any:
    """Return a tool without what stands at null, as some programs write what they leave out.

    Fields that are not OpenAI's are left out too.
    """
    if not isinstance(element, dict):
        return element
    tool = cast("dict[str, Any]", element)
    kept = {name: it for name, it in tool.items() if name in _FIELDS and it is not None}
    if isinstance(function := kept.get("function"), dict):
        fields = cast("dict[str, Any]", function)
        kept["function"] = {name: it for name, it in fields.items() if it is not None}
    return kept
