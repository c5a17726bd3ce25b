"""Which model of a turn's list is asked: the next one where one failed in a way that names it.

Source: docs/adr/0045-a-turn-falls-back-by-named-codes.md
"""

import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from turnline.worker.errors import RateLimited, Retryable, Terminal
from turnline.worker.pool import OF_THE_KEY
from turnline.worker.turn.attempt import Attempt
from turnline.worker.turn.checkpoints import Left
from turnline.worker.turn.plan import Plan

log = logging.getLogger("turnline.turns")
NOT_SERVED: Final = "model_not_found"
FALLS_BACK: Final = frozenset(
    {
        NOT_SERVED,
        "overloaded",
        "server_error",
        "stream_error",
        "silence_timeout",
        "first_token_timeout",
    }
)
"""Codes of failures that speak against one model, and may not be there with the next one."""
_FOR_GOOD: Final = OF_THE_KEY | {NOT_SERVED}
"""Codes with which a member would fail again in the same turn."""
_LONG_S: Final = 10.0
"""For which a rate limit is waited for; if the provider asks for more, the next model is asked."""


class FallBack(NamedTuple):
    """What follows a failure that speaks against a model, or a member of the pool."""

    left: tuple[Left, ...]
    """Who are to be asked after all others from now on."""
    at_once: bool
    """Whether somebody follows who has not failed in this turn."""


def in_order(models: Sequence[str], left: Sequence[Left]) -> tuple[str, ...]:
    """Return the models to ask, those that failed last; without those that are not served."""
    if not left:
        return tuple(models)
    left = [it for it in left if not it.member]
    gone = {it.model for it in left if it.code == NOT_SERVED}
    last = {it.model: n for n, it in enumerate(left)}
    return tuple(sorted((it for it in models if it not in gone), key=lambda it: last.get(it, -1)))


def with_models(plan: Plan, usual: tuple[str, ...], left: Sequence[Left]) -> Plan:
    """Return the plan with the models to ask, and the settings for the first one of them.

    Args:
        plan: Its agent may have models.
        usual: Those that are asked where it has none.
        left: Models that the turn has left.
    """
    models = plan.models or usual
    models = in_order(models, left) or models[-1:]
    settings = plan.settings
    if settings.model != models[0]:
        settings = msgspec.structs.replace(settings, model=models[0])
    return plan._replace(settings=settings, models=models)


def members_left(left: Sequence[Left]) -> tuple[list[str], set[str]]:
    """Return members of the pool that failed, the last one last, and which would fail again."""
    if not left:
        return [], set()
    left = [it for it in left if it.member]
    return [it.member for it in left], {it.member for it in left if it.code in _FOR_GOOD}


def fall_back(
    failure: Retryable | Terminal, attempt: Attempt, before: Sequence[Left]
) -> FallBack | None:
    """Say what follows a failure; None: it is no reason to ask another one, or there is none.

    A member of the pool that has not failed is asked at once, else a model. When all have failed,
    they are asked in turn: each model by all members, then the next model.

    Args:
        failure: Of a call.
        attempt: In which it was made.
        before: Models and members that the turn had left.
    """
    if attempt.log.has_shown:
        return None
    others = _other_members(failure, attempt, before)
    left = (Left("", failure.code, attempt.plan.member.ident),) if others else ()
    if not others.issubset(members_left(before)[0]):
        return FallBack(left, at_once=True)
    next_model = _next_model(failure, attempt.plan, before)
    if next_model is not None and next_model.at_once:
        return _noted(next_model, attempt.plan)
    last = max((n for n, it in enumerate(before, 1) if not it.member), default=0)
    if next_model is not None and others.issubset(members_left(before[last:])[0]):
        return _noted(next_model._replace(left=(*left, *next_model.left)), attempt.plan)
    return FallBack(left, at_once=False) if left else None


def _noted(following: FallBack, plan: Plan) -> FallBack:
    model, code = plan.settings.model or "", following.left[-1].code
    log.info("model.left", extra={"model": model, "code": code})
    return following


def _next_model(
    failure: Retryable | Terminal, asked: Plan, before: Sequence[Left]
) -> FallBack | None:
    """Say which models are left for another one; None if it is no reason, or there is none."""
    if len(asked.models) < 2 or not (failure.code in FALLS_BACK or _limits_long(failure)):
        return None
    model = asked.settings.model or ""
    passed = asked.models[: asked.models.index(model)]  # their breakers are open
    left = (*(Left(it, "provider_unavailable") for it in passed), Left(model, failure.code))
    if not in_order(asked.models, left):
        return None
    failed = {it.model for it in (*before, *left) if not it.member}
    return FallBack(left, not failed.issuperset(asked.models))


def _limits_long(failure: Retryable | Terminal) -> bool:
    is_refusal = isinstance(failure, RateLimited) and failure.status is not None
    return is_refusal and (failure.retry_after_s or 0) > _LONG_S


def _other_members(
    failure: Retryable | Terminal, attempt: Attempt, before: Sequence[Left]
) -> set[str]:
    """Return the members that may do better, by their `ident`; none if it is no reason.

    A key that is refused, or has to wait for long, speaks against itself; a provider that fails, or
    lacks the model, against its address.
    """
    asked, pool = attempt.plan.member, attempt.pool
    of_key, of_address = failure.code in OF_THE_KEY, failure.code in FALLS_BACK | {"connection"}
    if len(pool) == 1 or not (of_key or of_address or _limits_long(failure)):
        return set()
    _, out = members_left(before)
    others = [it for it in pool.members if it.ident not in {*out, asked.ident}]
    if of_address:
        others = [it for it in others if it.base_url != asked.base_url]
    if not of_key:  # it would fail for good there
        others = [it for it in others if not pool.is_left_out(it)]
    return {it.ident for it in others}
