"""Agents: named profiles from a file, and what one turn works with: settings, tools, limits."""

import logging
import tomllib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
from msgspec import Meta

from turnline.contracts.conversation import (
    AgentName,
    ConversationSettings,
    Id,
    PositiveInt,
    Probability,
    ReasoningEffort,
    ResponseFormat,
    Temperature,
    Text,
    ToolDefinition,
    Wire,
    check_wire,
)
from turnline.contracts.json_schemas import Schema, Schemas
from turnline.contracts.messages import ContextAppend, Inbound, UserMessage
from turnline.contracts.schema_bounds import BadSchema
from turnline.contracts.server_tools import ServerTools
from turnline.worker.files import FileChanges, UnusableFile, read_text
from turnline.worker.pool import Member
from turnline.worker.schema_checking import Checker

log = logging.getLogger("turnline.agents")

MOST_TOOLS = 128
"""Functions that Grok takes in one request."""
_MOST_BYTES = 1024 * 1024
"""Of the agents file; a second or two of reading, apart from the loop."""
Seconds = Annotated[float, Meta(gt=0, le=2_592_000)]


class Agent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the agents file; what is left out is the worker's or the conversation's."""

    description: str = ""
    """For people; never sent."""
    system_prompt: Text | None = None
    model: Id | Annotated[tuple[Id, ...], Meta(min_length=1)] | None = None
    """Several: the next one is asked when one cannot answer."""
    temperature: Temperature | None = None
    top_p: Probability | None = None
    max_tokens: PositiveInt | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None
    reasoning_effort: ReasoningEffort | None = None
    tools: tuple[str, ...] | None = None
    """Names of the workers' tools that it may call; left out: all of them."""
    tool_choice: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    wire: Wire | None = None
    max_output_tokens: PositiveInt | None = None
    server_tools: ServerTools | None = None
    reasoning_summary: bool | None = None
    max_tool_rounds: PositiveInt | None = None
    tool_result_bytes: PositiveInt | None = None
    tool_wait_s: Seconds | None = None
    turn_budget_s: Seconds | None = None

    def __post_init__(self) -> None:
        check_wire(self)
        if len(set(self.models)) < len(self.models):
            raise ValueError("model: a name stands there twice")

    @property
    def models(self) -> tuple[str, ...]:
        """The models, in order; none: those of the conversation or of the worker."""
        match self.model:
            case None:
                return ()
            case str():
                return (self.model,)
            case _:
                return self.model


_SETTINGS = (
    *("system_prompt", "temperature", "top_p", "max_tokens", "seed"),
    *("reasoning_effort", "tool_choice", "response_format"),
    *("wire", "max_output_tokens", "server_tools", "reasoning_summary"),
)
"""Fields that a profile shares with a conversation's settings."""


class BadAgents(Exception):
    """The agents file cannot be used; the text says what is wrong."""


def read_agents(
    path: Path, tools: Sequence[str], schemas: Schemas | None = None
) -> dict[str, Agent]:
    """Read an agents file: TOML, one table for each agent.

    Args:
        path: The file.
        tools: Names of the tools there are.
        schemas: Compiles what the agents' replies have to fit.

    Raises:
        BadAgents: It cannot be read, or something in it is wrong.
    """
    try:
        tables = tomllib.loads(read_text(path, most_bytes=_MOST_BYTES))
    except UnusableFile as error:
        raise BadAgents(f"{path}: {error}") from None
    except RecursionError:
        raise BadAgents(f"{path}: it is nested too deeply") from None
    except ValueError as error:  # no TOML, or a number of thousands of digits
        raise BadAgents(f"{path}: it is no TOML: {error}") from None
    if not tables:
        raise BadAgents(f"{path}: it has no agent: a table such as [support] for each")
    schemas = schemas or Schemas()
    agents: dict[str, Agent] = {}
    for name, table in tables.items():
        try:
            msgspec.convert(name, AgentName)
            agents[name] = msgspec.convert(table, Agent)
        except msgspec.ValidationError as error:
            raise BadAgents(f"{path}, [{name}]: {error}") from None
        if unknown := sorted(set(agents[name].tools or ()) - set(tools)):
            known = ", ".join(sorted(tools)) or "none"
            raise BadAgents(f"{path}, [{name}]: no tool {unknown[0]!r}; there are: {known}")
        if (asked := agents[name].response_format) is not None:
            try:
                schemas.of_reply(asked)
            except BadSchema as error:
                raise BadAgents(f"{path}, [{name}]: response_format: {error}") from None
    return agents


class AgentsFile:
    """The agents, read again when the file changes."""

    def __init__(self, path: Path, tools: Sequence[str], schemas: Schemas | None = None) -> None:
        """Read the file.

        Raises:
            BadAgents: See `read_agents`.
        """
        self._read = partial(read_agents, path, tools)
        self._changes = FileChanges(path)
        self.agents: Mapping[str, Agent] = read_agents(path, tools, schemas)

    def get(self, name: str) -> Agent | None:
        """Return an agent as the file had it when it was last read."""
        return self.agents.get(name)

    async def refresh(self) -> None:
        """Read the file again, in a thread, if it changed; a broken one changes nothing."""
        try:
            agents = await self._changes.read(self._read)
        except BadAgents as error:
            log.error("agents.unusable", extra={"error": str(error)})  # noqa: TRY400  told
            return
        if agents is not None:
            self.agents = agents
            log.info("agents.loaded", extra={"agents": ",".join(agents)})


class ToolLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds a turn and its tool calls."""

    max_tool_rounds: int = 8
    """Model calls per turn; tools asked for in the last one are not run."""
    result_bytes: int = 65_536
    """UTF-8 bytes of one result; the rest is cut."""
    wait_s: float = 3_600.0
    """Seconds until a call that nobody answers fails, where its tool says nothing else."""
    turn_budget_s: float | None = None
    """Seconds that the attempts at a turn may take; None: as the worker's settings say."""


class ToolOptions(Protocol):
    """How a tool is run; see `turnline.worker.tools.declaration`."""

    @property
    def timeout_s(self) -> float | None: ...  # noqa: D102
    @property
    def retry_safe(self) -> bool: ...  # noqa: D102
    @property
    def cancel_on_interruption(self) -> bool: ...  # noqa: D102


class Tools(Protocol):
    """The tools that this worker has; see `turnline.worker.tools.runner`."""

    @property
    def definitions(self) -> Sequence[tuple[str, dict[str, Any], float | None]]: ...  # noqa: D102
    def options(self, name: str) -> ToolOptions | None: ...  # noqa: D102
    async def call(  # noqa: D102
        self, name: str, arguments: Mapping[str, Any], call: "CallIds"
    ) -> str: ...


class CallIds(NamedTuple):
    """Which call it is."""

    conversation_id: str
    turn_id: str
    attempt: int
    call_id: str
    traceparent: str = ""

    @property
    def idempotency_key(self) -> str:
        """The same whenever this call is run again."""
        return f"{self.conversation_id}/{self.turn_id}/{self.call_id}"


class Plan(NamedTuple):
    """What one turn works with."""

    settings: ConversationSettings
    """With the agent's profile worked in."""
    tools: Sequence[dict[str, Any]]
    """In the shape of OpenAI's API."""
    offered: Mapping[str, float | None]
    """Tools by name: seconds to wait for a result where this worker does not have the tool."""
    limits: ToolLimits
    arguments: Mapping[str, Schema] = {}
    """What the arguments of tools have to fit that this worker does not have."""
    reply: Schema | None = None
    """What the reply has to fit, if a form is asked for."""
    problem: tuple[str, str] | None = None
    """Code and text of why the turn cannot be run."""
    models: tuple[str, ...] = ()
    """That may be asked, in order; none: as the settings and the worker say."""

    member: Member = Member()
    """By whose key and where the model is asked."""

    def with_member(self, member: Member) -> "Plan":
        """Return the plan by which the model is asked by this one."""
        return self if member is self.member else self._replace(member=member)

    def with_model(self, model: str) -> "Plan":
        """Return the plan by which this model is asked."""
        if self.settings.model == model:
            return self
        return self._replace(settings=msgspec.structs.replace(self.settings, model=model))


class Planner:
    """Works out plans from a worker's tools and agents and a conversation's settings."""

    def __init__(
        self,
        toolbox: Tools | None = None,
        agents: AgentsFile | None = None,
        limits: ToolLimits | None = None,
        checker: Checker | None = None,
    ) -> None:
        """Use the worker's tools, agents and limits.

        Raises:
            BadSchema: A tool's schema cannot be used.
        """
        self.toolbox = toolbox
        self.checker = checker or Checker()
        self._agents = agents
        self._limits = limits or ToolLimits()
        definitions = toolbox.definitions if toolbox is not None else ()
        self._tools = [tool for _, tool, _ in definitions]
        self._offered = {name: wait_s for name, _, wait_s in definitions}
        self._arguments = {
            name: self.checker.schemas.of_arguments(tool["function"]["parameters"])
            for name, tool, _ in definitions
            if toolbox is not None and toolbox.options(name) is None
        }

    async def refresh(self) -> None:
        """Take note of a change of the agents file; before a turn's first plan."""
        if self._agents is not None:
            await self._agents.refresh()

    def plan_of(self, message: Inbound | None, settings: ConversationSettings) -> Plan:
        """Work out the plan of the turn that a message asks for."""
        if isinstance(message, UserMessage | ContextAppend):
            form = message.response_format or None
            return self.plan(settings, agent=message.agent or None, response_format=form)
        return self.plan(settings)

    def plan(
        self,
        settings: ConversationSettings,
        *,
        agent: str | None = None,
        response_format: dict[str, Any] | None = None,
    ) -> Plan:
        """Work out a turn's plan.

        Args:
            settings: The conversation's. They win over the profile of their own agent.
            agent: Named by the message; its profile wins over the settings.
            response_format: Asked for by the message.
        """
        if settings.agent is None and agent is None and response_format is None:
            if settings.tools is None:
                plan = Plan(settings, self._tools, self._offered, self._limits, self._arguments)
                return plan if settings.response_format is None else self._with_reply(plan)
            return self._with_tools(settings, None, self._limits)
        name = agent or settings.agent
        profile = None
        models: tuple[str, ...] = ()
        if name is not None:
            profile = self._agents.get(name) if self._agents is not None else None
            if profile is None:
                problem = ("unknown_agent", f"no agent is called {name}")
                return Plan(settings, (), {}, self._limits, problem=problem)
            if agent is not None or settings.model is None:
                models = profile.models
            settings = _merged(settings, profile, profile_wins=agent is not None)
        if response_format is not None:
            settings = msgspec.structs.replace(settings, response_format=response_format)
        plan = self._with_tools(settings, profile, _limited(self._limits, profile))
        return plan._replace(models=models).with_model(models[0]) if models else plan

    def _with_tools(
        self, settings: ConversationSettings, profile: Agent | None, limits: ToolLimits
    ) -> Plan:
        chosen = None if profile is None else profile.tools
        tools, offered = list[dict[str, Any]](), dict[str, float | None]()
        arguments = dict(self._arguments)
        problem = None
        for tool, (name, wait_s) in zip(self._tools, self._offered.items(), strict=True):
            if chosen is None or name in chosen:
                tools.append(tool)
                offered[name] = wait_s
        for definition in settings.tools or ():
            name = definition.function.name
            if name not in offered:
                tools.append(_offered(definition))
                offered[name] = definition.timeout_s or None
                try:
                    parameters = definition.function.parameters
                    arguments[name] = self.checker.schemas.of_arguments(parameters)
                except BadSchema as error:
                    problem = ("invalid_schema", f"parameters of the tool {name}: {error}")
        count = len(tools) + len(settings.server_tools or ())
        if count > MOST_TOOLS:
            text = f"{count} tools are offered; a model takes {MOST_TOOLS}"
            problem = ("too_many_tools", text)
        plan = Plan(settings, tools, offered, limits, arguments, problem=problem)
        return plan if settings.response_format is None else self._with_reply(plan)

    def _with_reply(self, plan: Plan) -> Plan:
        """Add what the reply has to fit."""
        asked = plan.settings.response_format
        assert asked is not None
        try:
            return plan._replace(reply=self.checker.schemas.of_reply(asked))
        except BadSchema as error:
            return plan._replace(problem=("invalid_schema", f"response_format: {error}"))


def _offered(definition: ToolDefinition) -> dict[str, Any]:
    return {
        "function": msgspec.to_builtins(definition.function),
        "type": definition.type,
    }


def _merged(
    settings: ConversationSettings, profile: Agent, *, profile_wins: bool
) -> ConversationSettings:
    changed: dict[str, Any] = {}
    for name in _SETTINGS:
        value = getattr(profile, name)
        if value is not None and (profile_wins or getattr(settings, name) is None):
            changed[name] = value
    return msgspec.structs.replace(settings, **changed)


def _limited(limits: ToolLimits, profile: Agent | None) -> ToolLimits:
    if profile is None:
        return limits
    return ToolLimits(
        max_tool_rounds=profile.max_tool_rounds or limits.max_tool_rounds,
        result_bytes=profile.tool_result_bytes or limits.result_bytes,
        wait_s=profile.tool_wait_s or limits.wait_s,
        turn_budget_s=profile.turn_budget_s or limits.turn_budget_s,
    )
