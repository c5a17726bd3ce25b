"""The model's side: makes the plan of the response to a chat request. No input or output here."""

import random
import time
import zlib
from typing import Final

import msgspec
from msgspec import UNSET

from turnline.ops.simulator.config import ErrorStyle, Profile, SimulatorConfig
from turnline.ops.simulator.faults import catalogue
from turnline.ops.simulator.faults.catalogue import Wishes
from turnline.ops.simulator.faults.http_faults import HTTP, body_plan, error_plan
from turnline.ops.simulator.faults.reply_faults import STREAM
from turnline.ops.simulator.faults.response_plan import (
    BadPosition,
    Frame,
    FrameKind,
    Framing,
    Headers,
    Plan,
)
from turnline.ops.simulator.faults.rules import RuleBook
from turnline.ops.simulator.faults.scenario import HEADER, BadScenario, Scenario
from turnline.ops.simulator.faults.transport_faults import TRANSPORT
from turnline.ops.simulator.faults.usage_faults import USAGE, cached_over_prompt
from turnline.ops.simulator.http import headers
from turnline.ops.simulator.http.http1 import Request
from turnline.ops.simulator.ledger import Entry, Ledger
from turnline.ops.simulator.model import content
from turnline.ops.simulator.model.answer import Answer
from turnline.ops.simulator.model.content import CONTENT, Asked
from turnline.ops.simulator.model.deferred import DeferredStore
from turnline.ops.simulator.model.dialogues import Dialogues
from turnline.ops.simulator.model.error_bodies import JSON, ApiError
from turnline.ops.simulator.model.models import Catalogue
from turnline.ops.simulator.model.pacing import Tempo
from turnline.ops.simulator.model.prompt import PromptCache
from turnline.ops.simulator.model.rate_limits import RateLimiter
from turnline.ops.simulator.model.stream_frames import (
    Voice,
    completion,
    completion_tokens,
    stream_frames,
)
from turnline.ops.simulator.model.usage import Usage, usage
from turnline.ops.simulator.model.validation import Accepted, Refused, Validator

_AZURE_EXTRA_CACHED: Final = 154
_SEED_STRIDE: Final = 1_000_003
_CONVERSATION: Final = "x-grok-conv-id"
_REDIRECTED: Final = "redirected"


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
    wishes: Wishes


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
        self._validator = Validator(models, config.api_keys)
        self._cache = PromptCache()
        self._limiter = RateLimiter(config.requests_per_second, config.tokens_per_minute)
        self._peek = msgspec.json.Decoder(_Peek).decode
        self.deferred = DeferredStore()
        """Answers that wait to be fetched."""

    @property
    def error_style(self) -> ErrorStyle:
        """How error codes are spelled."""
        if self._config.error_style is not None:
            return self._config.error_style
        modern = self._config.profile in {Profile.MODERN, Profile.AZURE}
        return ErrorStyle.KEBAB if modern else ErrorStyle.SENTENCE

    def check_key(self, request: Request) -> None:
        """Look at a request's key.

        Raises:
            Refused: It is missing or not let in.
        """
        self._validator.check_key(request.headers.get("authorization"))

    def refusal(self, error: ApiError, rng: random.Random) -> Plan:
        """The response to a request that is refused."""
        plan = error_plan(error, self.error_style)
        if error.has_request_id:
            plan.headers.append(("x-request-id", headers.request_id(rng, self._config.profile)))
        plan.headers += headers.edge_headers(rng)
        return plan

    def rng(self, entry: Entry) -> random.Random:
        """The randomness of one request."""
        return random.Random(self._config.seed * _SEED_STRIDE + entry.seq)

    def chat(self, request: Request, entry: Entry) -> Plan:
        """Plan the response to `POST /v1/chat/completions`."""
        rng = self.rng(entry)
        try:
            turn = self._begin(request, entry, rng)
            plan = self._replaced(turn) or self._answered(turn)
            if plan.is_stream and plan.is_answer and entry.usage is not None:
                for scenario in turn.wishes.stream:
                    STREAM[scenario.name].run(plan, scenario, entry.usage)
            for scenario in turn.wishes.transport:
                TRANSPORT[scenario.name].run(plan, scenario)
            for scenario in turn.wishes.control:
                if scenario.name == "refuse":
                    plan.refuses_s = scenario.real("seconds", 1.0)
        except (BadScenario, BadPosition) as error:
            entry.usage = None
            return self.refusal(
                ApiError(status=400, code="simulator:bad-scenario", message=str(error)), rng
            )
        return plan

    def _begin(self, request: Request, entry: Entry, rng: random.Random) -> _Turn:
        try:
            peek, is_json = self._peek(request.body), True
        except msgspec.ValidationError:
            peek, is_json = _Peek(), True
        except (msgspec.DecodeError, UnicodeDecodeError):
            peek, is_json = _Peek(), False
        self._ledger.keep_body(entry, request.body, is_json=is_json)
        entry.conversation_id = request.headers.get(_CONVERSATION) or peek.prompt_cache_key
        model, has_suffix, suffix = (peek.model or "").partition("@")
        scenarios = self._rules.take(entry.conversation_id)
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
        """The response of a scenario that lets nothing else happen."""
        for scenario in turn.wishes.http:
            if scenario.name == "redirect" and _REDIRECTED in turn.request.query:
                continue
            style = ErrorStyle(self.error_style)
            plan = HTTP[scenario.name].run(scenario, turn.entry.model or "latest", style)
            plan.headers += headers.edge_headers(turn.rng)
            return plan
        return None

    def _answered(self, turn: _Turn) -> Plan:
        request, entry, now_s = turn.request, turn.entry, time.monotonic()
        try:
            accepted = self._validator.check(
                request.body,
                content_type=request.headers.get("content-type", ""),
                authorization=request.headers.get("authorization"),
                model=turn.model,
            )
        except Refused as refused:
            return self.refusal(refused.error, turn.rng)
        entry.model = accepted.model.name
        entry.stream = bool(accepted.request.stream)
        key = str(zlib.crc32(request.headers.get("authorization", "").encode()))
        limited = self._limiter.admit(key, accepted.model.name, accepted.prompt.tokens, now_s)
        if limited is not None:
            return self.refusal(limited, turn.rng)
        answer = self._answer(turn, accepted)
        entry.usage = self._usage(turn, accepted, answer)
        spent = entry.usage.total_tokens - entry.usage.prompt_tokens
        self._limiter.spend(key, accepted.model.name, spent, now_s)
        return self._plan(turn, accepted, answer, entry.usage)

    def _answer(self, turn: _Turn, accepted: Accepted) -> Answer:
        asked = Asked(accepted, turn.rng)
        answer = content.answer(
            asked,
            conversation_id=turn.entry.conversation_id,
            dialogues=self._dialogues,
            profile=self._config.profile,
            reasoning=self._config.reasoning,
        )
        for scenario in turn.wishes.content:
            answer = CONTENT[scenario.name].run(answer, scenario, asked)
        return content.limit(answer, accepted)

    def _usage(self, turn: _Turn, accepted: Accepted, answer: Answer) -> Usage:
        profile, prompt = self._config.profile, accepted.prompt
        cached = self._cache.cached_tokens(turn.entry.conversation_id, accepted.model, prompt)
        counted = usage(
            accepted.model,
            prompt_tokens=prompt.tokens,
            completion_tokens=completion_tokens(answer),
            reasoning_tokens=answer.reasoning_tokens,
            cached_tokens=cached,
            image_tokens=prompt.image_tokens,
            priority=accepted.request.service_tier == "priority",
        )
        if profile is Profile.AZURE:
            counted = msgspec.structs.replace(counted, cost_in_usd_ticks=0)
            if cached:
                counted = cached_over_prompt(counted, _AZURE_EXTRA_CACHED)
        elif profile is not Profile.MODERN:
            counted = msgspec.structs.replace(counted, cost_in_usd_ticks=UNSET)
        for scenario in turn.wishes.usage:
            counted = USAGE[scenario.name].run(counted, scenario)
        return counted

    def _plan(self, turn: _Turn, accepted: Accepted, answer: Answer, counted: Usage) -> Plan:
        config, rng = self._config, turn.rng
        suffix = "_us-east-1" if config.profile is Profile.OCT2025 else ""
        name = accepted.model.name
        if name == "grok-3-mini" and accepted.effort == "high":
            name = "grok-3-mini-high"
        voice = Voice(
            completion_id=headers.uuid_text(rng) + suffix,
            model=name,
            fingerprint=accepted.model.fingerprint,
            profile=config.profile,
            usage_in_every_chunk=config.usage_in_every_chunk
            or turn.wishes.has("usage-every-chunk"),
        )
        tempo = Tempo(turn.wishes.pacing(config.pacing), rng)
        head = headers.answer_headers(
            rng, config.profile, accepted.model, stream=bool(accepted.request.stream)
        )
        if accepted.request.stream:
            options = accepted.request.stream_options
            prefix, frames = stream_frames(
                answer,
                counted,
                voice,
                tempo,
                include_usage=options is not None and bool(options.include_usage),
            )
            return _stream_plan(head, prefix, frames, tempo)
        plan = _body_plan(
            head, completion(answer, counted, voice, created=int(time.time())), counted, tempo
        )
        if accepted.request.deferred:
            return self._defer(turn, plan)
        return plan

    def _defer(self, turn: _Turn, plan: Plan) -> Plan:
        number = headers.uuid_text(turn.rng)
        self.deferred.put(number, plan, turn.entry, time.monotonic() + plan.head_delay_s)
        plan.head_delay_s = 0.0
        body = msgspec.json.encode({"request_id": number})
        response = body_plan(200, JSON, body, headers.edge_headers(turn.rng))
        response.is_error = False
        return response


def _stream_plan(head: Headers, prefix: bytes, frames: list[Frame], tempo: Tempo) -> Plan:
    plan = Plan(
        headers=head,
        framing=Framing.CHUNKED,
        prefix=prefix,
        steps=list(frames),
        is_stream=True,
        is_answer=True,
    )
    tempo.lay(plan)
    return plan


def _body_plan(head: Headers, body: bytes, counted: Usage, tempo: Tempo) -> Plan:
    tokens = counted.completion_tokens + counted.completion_tokens_details.reasoning_tokens
    ttft_s = tempo.first_s()
    itl_s = 0.0 if tempo.is_instant else tempo.next_s()
    total_s = ttft_s + itl_s * max(0, tokens - 1)
    return Plan(
        headers=head + headers.metric_headers(ttft_s, itl_s, total_s),
        head_delay_s=total_s,
        steps=[
            Frame(
                kind=FrameKind.BODY,
                data=body,
                stamped=False,
                tokens=counted.completion_tokens,
                finishes=True,
                reports_usage=True,
            )
        ],
        is_answer=True,
    )
