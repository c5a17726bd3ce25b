"""The model's side: makes the plan of the response to a request. No input or output here."""

import random
import time
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import UNSET

from turnline.ops.simulator.chat import answer_frames as frames
from turnline.ops.simulator.chat.request import ChatRequests
from turnline.ops.simulator.config import ErrorStyle, Profile, SimulatorConfig
from turnline.ops.simulator.faults import catalogue
from turnline.ops.simulator.faults.http_faults import HTTP, error_plan
from turnline.ops.simulator.faults.response_plan import (
    Frame,
    FrameKind,
    Framing,
    Headers,
    Plan,
    body_plan,
    json_plan,
)
from turnline.ops.simulator.faults.rules import RuleBook
from turnline.ops.simulator.faults.scenario import HEADER, BadScenario, Scenario
from turnline.ops.simulator.faults.stream_faults import STREAM, USAGE
from turnline.ops.simulator.faults.transport_faults import TRANSPORT
from turnline.ops.simulator.http import headers
from turnline.ops.simulator.http.http1 import Request
from turnline.ops.simulator.model import api_errors, content
from turnline.ops.simulator.model.answer import Answer
from turnline.ops.simulator.model.api_errors import ApiError, Refused
from turnline.ops.simulator.model.content import CONTENT
from turnline.ops.simulator.model.dialogues import Dialogues
from turnline.ops.simulator.model.models import Catalogue
from turnline.ops.simulator.model.pacing import Tempo
from turnline.ops.simulator.model.prompt import Asked, PromptCache
from turnline.ops.simulator.model.rate_limits import RateLimiter
from turnline.ops.simulator.model.usage import Usage, cached_over_prompt, usage
from turnline.ops.simulator.request_ledger import Entry, Ledger

_AZURE_EXTRA_CACHED: Final = 154
_SEED_STRIDE: Final = 1_000_003
_CONVERSATION: Final = "x-grok-conv-id"
_REDIRECTED: Final = "redirected"
_KEPT_DEFERRED: Final = 10_000


class _Peek(msgspec.Struct, frozen=True):
    """What has to be known of a body before it is checked."""

    model: str | None = None
    prompt_cache_key: str | None = None


class _Turn(msgspec.Struct, kw_only=True):
    """One request on its way through."""

    request: Request
    entry: Entry
    rng: random.Random
    model: str | None
    """Stands in for the body's model, which had scenarios behind it."""
    wishes: Mapping[str, list[Scenario]]
    """Scenarios by group."""


class _Deferred(msgspec.Struct, frozen=True):
    """An answer that waits to be fetched."""

    ready_at_s: float
    plan: Plan
    asked: Entry


class Grok:
    """Answers chat requests by plans; everything that it remembers is bounded."""

    def __init__(
        self,
        config: SimulatorConfig,
        models: Catalogue,
        dialogues: Dialogues | None,
        rules: RuleBook,
        ledger: Ledger,
    ) -> None:
        self._config = config
        self._dialogues = dialogues
        self._rules = rules
        self._ledger = ledger
        self._requests = ChatRequests(models, config.api_keys)
        self._cache = PromptCache()
        self._limiter = RateLimiter(config.requests_per_second, config.tokens_per_minute)
        self._peek = msgspec.json.Decoder(_Peek).decode
        self._deferred: OrderedDict[str, _Deferred] = OrderedDict()

    @property
    def error_style(self) -> ErrorStyle:
        """How error codes are spelled."""
        if self._config.error_style is not None:
            return self._config.error_style
        modern = self._config.profile in {Profile.MODERN, Profile.AZURE}
        return ErrorStyle.KEBAB if modern else ErrorStyle.SENTENCE

    def rng(self, entry: Entry) -> random.Random:
        """Return the randomness of one request."""
        return random.Random(self._config.seed * _SEED_STRIDE + entry.seq)

    def refusal(self, error: ApiError, rng: random.Random) -> Plan:
        """Return the response to a request that is refused."""
        plan = error_plan(error, self.error_style)
        if error.has_request_id:
            plan.headers.append(("x-request-id", headers.request_id(rng, self._config.profile)))
        plan.headers += headers.edge_headers(rng)
        return plan

    def chat(self, request: Request, entry: Entry) -> Plan:
        """Plan the response to `POST /v1/chat/completions`."""
        rng = self.rng(entry)
        try:
            turn = self._begin(request, entry, rng)
            try:
                plan = self._replaced(turn) or self._answered(turn)
            except Refused as refused:
                plan = self.refusal(refused.error, rng)
            if plan.is_stream and plan.is_answer and entry.usage is not None:
                for scenario in turn.wishes["stream"]:
                    STREAM[scenario.name].run(plan, scenario, entry.usage)
            for scenario in turn.wishes["transport"]:
                TRANSPORT[scenario.name].run(plan, scenario)
            for scenario in turn.wishes["control"]:
                if scenario.name == "refuse":
                    plan.refuses_s = scenario.real("seconds", 1.0)
        except BadScenario as error:
            entry.usage = None
            return self.refusal(ApiError(400, str(error), "simulator:bad-scenario"), rng)
        return plan

    def fetch(self, request_id: str) -> Plan:
        """Give out a deferred answer, once it is ready and only once.

        Raises:
            Refused: There is none of this id.
        """
        waiting = self._deferred.get(request_id)
        if waiting is None:
            message = f"Deferred completion {request_id} not found."
            raise Refused(ApiError(404, message, "not-found"))
        if waiting.ready_at_s > time.monotonic():
            return body_plan(202, "", b"", is_error=False)
        del self._deferred[request_id]
        waiting.asked.usage_reported = True  # by the response to the request that fetches it
        return waiting.plan

    def _begin(self, request: Request, entry: Entry, rng: random.Random) -> _Turn:
        peek, is_json = _Peek(), True
        try:
            peek = self._peek(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            is_json = isinstance(error, msgspec.ValidationError)
        self._ledger.keep_body(entry, request.body, is_json=is_json)
        entry.conversation_id = request.headers.get(_CONVERSATION) or peek.prompt_cache_key
        model, has_suffix, suffix = (peek.model or "").partition("@")
        scenarios = self._rules.hit(entry.conversation_id)
        scenarios += catalogue.read(request.headers.get(HEADER, ""))
        scenarios += catalogue.read(suffix)
        scenarios = self._expanded(scenarios, entry)
        entry.model = model or None
        entry.scenarios = [scenario.name for scenario in scenarios]
        return _Turn(
            request=request,
            entry=entry,
            rng=rng,
            model=model if has_suffix else None,
            wishes=catalogue.sort(scenarios),
        )

    def _expanded(self, scenarios: list[Scenario], entry: Entry) -> list[Scenario]:
        """Replace `fail` by what it fails with, as long as it does."""
        expanded: list[Scenario] = []
        for scenario in scenarios:
            if scenario.name != "fail":
                expanded.append(scenario)
                continue
            key = scenario.text("key", entry.conversation_id or "")
            if self._rules.fails_again(key, scenario.number("n", 1)):
                expanded += catalogue.read(scenario.text("with", "unavailable"))
        return expanded

    def _replaced(self, turn: _Turn) -> Plan | None:
        """Return the response of a scenario that lets nothing else happen."""
        for scenario in turn.wishes["http"]:
            if scenario.name == "redirect" and _REDIRECTED in turn.request.query:
                continue
            model = turn.entry.model or "latest"
            plan = HTTP[scenario.name].run(scenario, model, self.error_style)
            plan.headers += headers.edge_headers(turn.rng)
            return plan
        return None

    def _answered(self, turn: _Turn) -> Plan:
        """Plan an answer.

        Raises:
            Refused: The request gets an error.
        """
        request, entry, now_s = turn.request, turn.entry, time.monotonic()
        if "json" not in request.headers.get("content-type", "").lower():
            raise Refused(api_errors.MEDIA_TYPE)
        authorization = request.headers.get("authorization")
        asked = self._requests.read(
            request.body, authorization=authorization, model=turn.model, rng=turn.rng
        )
        entry.model, entry.stream = asked.model.name, asked.stream
        key = str(zlib.crc32((authorization or "").encode()))
        limited = self._limiter.admit(key, asked.model.name, asked.prompt.tokens, now_s)
        if limited is not None:
            raise Refused(limited)
        answer = self._answer(turn, asked)
        entry.usage = self._usage(turn, asked, answer)
        spent = entry.usage.total_tokens - entry.usage.prompt_tokens
        self._limiter.spend(key, asked.model.name, spent, now_s)
        return self._plan(turn, asked, answer, entry.usage)

    def _answer(self, turn: _Turn, asked: Asked) -> Answer:
        answer = content.compose(
            asked,
            conversation_id=turn.entry.conversation_id,
            dialogues=self._dialogues,
            profile=self._config.profile,
            reasoning=self._config.reasoning,
        )
        for scenario in turn.wishes["content"]:
            answer = CONTENT[scenario.name].run(answer, scenario, asked)
        return content.limit(answer, asked)

    def _usage(self, turn: _Turn, asked: Asked, answer: Answer) -> Usage:
        profile, prompt = self._config.profile, asked.prompt
        cached = self._cache.cached_tokens(turn.entry.conversation_id, asked.model, prompt)
        counted = usage(
            asked.model,
            prompt_tokens=prompt.tokens,
            completion_tokens=answer.completion_tokens,
            reasoning_tokens=answer.reasoning_tokens,
            cached_tokens=cached,
            image_tokens=prompt.image_tokens,
            priority=asked.priority,
        )
        if profile is Profile.AZURE:
            counted = msgspec.structs.replace(counted, cost_in_usd_ticks=0)
            if cached:
                counted = cached_over_prompt(counted, _AZURE_EXTRA_CACHED)
        elif profile is not Profile.MODERN:
            counted = msgspec.structs.replace(counted, cost_in_usd_ticks=UNSET)
        for scenario in turn.wishes["usage"]:
            counted = USAGE[scenario.name].run(counted, scenario)
        return counted

    def _plan(self, turn: _Turn, asked: Asked, answer: Answer, counted: Usage) -> Plan:
        config, rng, pacing = self._config, turn.rng, self._config.pacing
        region = "_us-east-1" if config.profile is Profile.OCT2025 else ""
        completion_id = headers.uuid_text(rng) + region
        usage_in_every_chunk = config.usage_in_every_chunk
        for scenario in turn.wishes["control"]:
            if scenario.name == "pace":
                pacing = catalogue.pace(pacing, scenario)
            usage_in_every_chunk |= scenario.name == "usage-every-chunk"
        name = asked.model.name
        if name == "grok-3-mini" and asked.effort == "high":
            name = "grok-3-mini-high"
        voice = frames.Voice(
            completion_id=completion_id,
            model=name,
            fingerprint=asked.model.fingerprint,
            profile=config.profile,
            usage_in_every_chunk=usage_in_every_chunk,
        )
        tempo = Tempo(pacing, rng)
        head = headers.answer_headers(rng, config.profile, asked.model, stream=asked.stream)
        if asked.stream:
            prefix, steps = frames.stream_frames(
                answer, counted, voice, tempo, include_usage=asked.include_usage
            )
            return _stream_plan(head, prefix, steps, tempo)
        body = frames.completion(answer, counted, voice, created=int(time.time()))
        plan = _whole_plan(head, body, counted, tempo)
        return self._defer(turn, plan) if asked.deferred else plan

    def _defer(self, turn: _Turn, plan: Plan) -> Plan:
        """Keep an answer until it is fetched, and plan the response that has its id."""
        number, ready_at_s = headers.uuid_text(turn.rng), time.monotonic() + plan.head_delay_s
        self._deferred[number] = _Deferred(ready_at_s, plan, turn.entry)
        if len(self._deferred) > _KEPT_DEFERRED:
            self._deferred.popitem(last=False)
        plan.head_delay_s = 0.0
        return json_plan({"request_id": number}, headers.edge_headers(turn.rng))


def _stream_plan(head: Headers, prefix: bytes, steps: list[Frame], tempo: Tempo) -> Plan:
    plan = Plan(
        headers=head,
        framing=Framing.CHUNKED,
        prefix=prefix,
        steps=list(steps),
        is_stream=True,
        is_answer=True,
    )
    tempo.lay(plan)
    return plan


def _whole_plan(head: Headers, body: bytes, counted: Usage, tempo: Tempo) -> Plan:
    tokens = counted.completion_tokens + counted.completion_tokens_details.reasoning_tokens
    ttft_s = tempo.first_s()
    itl_s = 0.0 if tempo.is_instant else tempo.next_s()
    total_s = ttft_s + itl_s * max(0, tokens - 1)
    frame = Frame(
        kind=FrameKind.BODY,
        data=body,
        stamped=False,
        tokens=counted.completion_tokens,
        finishes=True,
        reports_usage=True,
    )
    return Plan(
        headers=head + headers.metric_headers(ttft_s, itl_s, total_s),
        head_delay_s=total_s,
        steps=[frame],
        is_answer=True,
    )
