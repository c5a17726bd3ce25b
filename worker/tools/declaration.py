"""What a module of tools imports: the decorator, the context, the error for the model."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar, overload

import msgspec

from turnline.worker.pipeline.functions import FunctionCallFailed

P = ParamSpec("P")
R = TypeVar("R")
ResourcesT = TypeVar("ResourcesT")

DEFAULT_TIMEOUT_S = 60.0


class ToolFailed(FunctionCallFailed):
    """Raised by a tool: the text is meant for the model and becomes the call's result."""


class ToolContext(msgspec.Struct, Generic[ResourcesT], frozen=True, kw_only=True):
    """A call's context: passed to a tool that has a parameter of this type."""

    conversation_id: str
    turn_id: str
    call_id: str
    idempotency_key: str
    """The same whenever this call is run again, and for no other call."""
    attempt: int
    """Of the turn; above 1 after a crash, a hand-over or a wait."""
    traceparent: str
    """W3C trace context of the call's span, the active one; of the turn, if there are no spans."""
    resources: ResourcesT
    """What the `resources` of the tool's module opened at the start; None if there is none."""


class ToolOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a tool is run."""

    name: str
    description: str | None = None
    """None: the docstring's."""
    timeout_s: float | None = DEFAULT_TIMEOUT_S
    """After so many seconds the call fails; None lets it run."""
    max_concurrency: int | None = None
    """Calls that one worker runs at a time; None: as many as come."""
    retry_safe: bool = False
    """Whether a call may be run again after a crash, its outcome being unknown."""
    cancel_on_interruption: bool = True
    """Whether an interruption cancels a running call."""
    names: Mapping[str, str] = {}
    """Parameters that the model knows by another name than the function."""


class Tool(Generic[P, R]):
    """A function that the model may call; calling it here runs the function."""

    def __init__(self, function: Callable[P, R], options: ToolOptions) -> None:
        """Hold it; what is wrong with it is found when the module is loaded."""
        self.function = function
        self.options = options
        self.__doc__ = function.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function, as it is."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Tool({self.options.name})"


def name_of(function: Any) -> str:
    """Return what a function is called; an object that can be called, by its class."""
    function = getattr(function, "func", function)  # of a partial
    return str(getattr(function, "__name__", type(function).__name__))


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float | None = DEFAULT_TIMEOUT_S,
    max_concurrency: int | None = None,
    retry_safe: bool = False,
    cancel_on_interruption: bool = True,
    names: Mapping[str, str] | None = None,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...
def tool(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float | None = DEFAULT_TIMEOUT_S,
    max_concurrency: int | None = None,
    retry_safe: bool = False,
    cancel_on_interruption: bool = True,
    names: Mapping[str, str] | None = None,
) -> Tool[P, R] | Callable[[Callable[P, R]], Tool[P, R]]:
    """Make a tool of a typed function, async or not; one that is not runs in a thread.

    Its name, docstring and annotations are what the model sees. The model's arguments are decoded
    into the annotated types; what does not fit becomes an error for the model. A parameter
    annotated as `ToolContext` gets the call's context. The result may be anything that msgspec
    encodes; text goes to the model as it is, all else as JSON.

    Args:
        function: The function, where the decorator stands without parentheses.
        name: The function's name if None.
        description: The docstring up to its sections if None.
        timeout_s: After so many seconds (waiting for a free place included) the call fails and the
            model gets an error; None: no limit. A thread cannot be stopped: its result is dropped.
        max_concurrency: Calls that one worker runs at a time.
        retry_safe: Whether a call that was running when its worker died is run again, with the
            same idempotency key. If not, its result for the model is that its outcome is unknown.
        cancel_on_interruption: Whether an interruption cancels a running call. If not, the
            interrupted turn ends when the call has its result.
        names: Parameters to names of properties, where these are no names in Python, such as
            `{"unit": "unit-of-measure"}`. `from_` and the like are `from` to the model without it.
    """

    def make(decorated: Callable[P, R]) -> Tool[P, R]:
        return Tool(
            decorated,
            ToolOptions(
                name=name or name_of(decorated),
                description=description,
                timeout_s=timeout_s,
                max_concurrency=max_concurrency,
                retry_safe=retry_safe,
                cancel_on_interruption=cancel_on_interruption,
                names=names or {},
            ),
        )

    return make if function is None else make(function)
