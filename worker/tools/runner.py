"""Runs the loaded tools: resources, threads, limits, arguments and results."""

import asyncio
import contextlib
import contextvars
import inspect
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec

from turnline.worker.errors import StartFailed
from turnline.worker.logs import facts_of, places, type_name
from turnline.worker.schema_checking import Checker
from turnline.worker.tools.declaration import ToolContext, ToolFailed, ToolOptions, name_of
from turnline.worker.tools.loader import LoadedTool, LoadedTools
from turnline.worker.tools.values import NotJson, decoded, result_text
from turnline.worker.turn.plan import CallIds

log = logging.getLogger("turnline.tools")

OPENING_S: Final = 120.0
"""Time to open all resources: pools connect, models load."""


class Toolbox:
    """The tools of one process, shared by all its conversations."""

    def __init__(self, loaded: LoadedTools, checker: Checker) -> None:
        """Hold what was loaded; `start` opens the resources.

        Args:
            loaded: The tools.
            checker: Checks arguments by the tools' regular expressions; whoever made it closes it.

        Raises:
            ValueError: There are problems with what was loaded.
        """
        if loaded.problems:
            raise ValueError("; ".join(loaded.problems))
        self._tools = {tool.name: tool for tool in loaded.tools}
        self._checker = checker
        self._patterns = {
            tool.name: self._checker.schemas.compiled(tool.described.patterns)
            for tool in loaded.tools
            if tool.described.patterns is not None
        }
        self._opening = loaded.resources
        self._at = ""
        self._resources: dict[str, Any] = {}
        self._closing = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._places = {
            name: asyncio.Semaphore(most)
            for name, tool in self._tools.items()
            if (most := tool.options.max_concurrency) is not None
        }
        self.definitions: tuple[tuple[str, dict[str, Any], float | None], ...] = (
            *((it.name, _offered(it.described.definition), None) for it in loaded.tools),
            *(
                (it.function.name, _offered(it.function), it.timeout_s or None)
                for it in loaded.schemas
            ),
        )
        """(name, the tool in the shape of OpenAI's API, seconds to wait for it elsewhere)."""

    async def start(self) -> None:
        """Open what the modules' `resources` open.

        Raises:
            StartFailed: One could not, or not within `OPENING_S`; what was opened is closed. Names
                the module, and of what it raised type and place.
        """
        opened = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(opened))
        try:
            done, _ = await asyncio.wait({opened}, timeout=OPENING_S)
        except asyncio.CancelledError:
            self._keeper.cancel()
            raise
        if not done:
            opened.cancel()
            self._keeper.cancel()
            raise _unopened(f"{self._at}: not open after {OPENING_S:g} s")
        if (error := opened.result()) is not None:
            place = ", ".join(places(error.__traceback__)[-1:])
            raise _unopened(f"{self._at}: {type_name(error)} ({place})")

    async def _keep(self, opened: "asyncio.Future[BaseException | None]") -> None:
        """Open the resources and close them: in one task, as some of them need it."""
        try:
            async with AsyncExitStack() as stack:
                for module, opening in self._opening:
                    self._at = module
                    self._resources[module] = await stack.enter_async_context(opening())
                opened.set_result(None)
                await self._closing.wait()
        except BaseException as error:  # noqa: BLE001  foreign code; it must not end the process
            if opened.done():
                log.warning("tool.resources_unclosed", extra=facts_of(error))
            else:
                opened.set_result(error)

    async def stop(self) -> None:
        """Close the resources, the last opened first; what that raises is logged."""
        self._closing.set()
        if self._keeper is not None:
            await asyncio.wait({self._keeper})

    def options(self, name: str) -> ToolOptions | None:
        """Return how a tool is run; None if this worker does not have it."""
        tool = self._tools.get(name)
        return None if tool is None else tool.options

    async def call(self, name: str, arguments: Mapping[str, Any], call: CallIds) -> str:
        """Run a tool and return its result for the model.

        Args:
            name: One that `options` knows.
            arguments: As the model sent them, decoded.
            call: Which call it is.

        Raises:
            ToolFailed: The text is for the model.
        """
        tool = self._tools[name]
        described = tool.described
        await self._check_patterns(name, arguments)
        named = decoded(arguments, described)
        if described.context_parameter is not None:
            named[described.context_parameter] = ToolContext(
                conversation_id=call.conversation_id,
                turn_id=call.turn_id,
                call_id=call.call_id,
                idempotency_key=call.idempotency_key,
                attempt=call.attempt,
                traceparent=call.traceparent,
                resources=self._resources.get(tool.module),
            )
        try:
            return result_text(await self._run(tool, named))
        except BaseException as error:
            if not _is_expected(error):
                log.warning("tool.failed", extra={"tool": name, **facts_of(error)})
            raise

    async def _check_patterns(self, name: str, arguments: Mapping[str, Any]) -> None:
        schema = self._patterns.get(name)
        if schema is not None:
            data = msgspec.json.encode(arguments)
            fault = await self._checker.fault(schema, arguments, data)
            if fault is not None:
                raise ToolFailed(f"The arguments do not fit: {fault}")

    async def _run(self, tool: LoadedTool, named: dict[str, Any]) -> Any:
        places = self._places.get(tool.name)
        if places is not None:
            await places.acquire()
        if tool.described.is_async:
            try:
                made = tool.tool.function(**named)
                return await made if inspect.isawaitable(made) else made
            finally:
                if places is not None:
                    places.release()
        running = _in_thread(tool.tool.function, named)
        if places is not None:  # a thread keeps its place until it really ends
            running.add_done_callback(lambda _: places.release())
        made = await asyncio.shield(running)
        if not inspect.isawaitable(made):
            return made
        async with places or contextlib.nullcontext():  # a coroutine behind a plain decorator
            return await made


def _unopened(why: str) -> StartFailed:
    return StartFailed(f"The resources of the tools cannot be opened: {why}")


def _is_expected(error: BaseException) -> bool:
    """Whether a tool means what it raised for the model, or somebody cancelled its task."""
    if isinstance(error, asyncio.CancelledError):  # a tool may raise it by itself
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, ToolFailed) and not isinstance(error, NotJson)


def _in_thread(function: Callable[..., Any], named: dict[str, Any]) -> "asyncio.Future[Any]":
    """Run a function in a thread that never keeps the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result, error = context.run(function, **named), None
        except BaseException as raised:  # noqa: BLE001  passed on to whoever awaits the future
            result, error = None, raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_set_result, future, result, error)

    threading.Thread(target=run, name=f"tool-{name_of(function)}", daemon=True).start()
    return future


def _set_result(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
        return
    if not isinstance(error, Exception) or isinstance(error, StopIteration):
        error = RuntimeError(type_name(error))
    future.set_exception(error)
    future.exception()  # whoever awaited it may be gone


def _offered(definition: Any) -> dict[str, Any]:
    function: dict[str, Any] = msgspec.to_builtins(definition)
    function.setdefault("parameters", {"type": "object", "properties": {}})
    return {"function": function, "type": "function"}
