"""Which model is asked by which member of the pool: what a turn's call goes to."""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from turnline.worker.lease import Lease
from turnline.worker.pipeline.context import Message, OpenAILLMContext
from turnline.worker.pipeline.reply_items import owner_of
from turnline.worker.provider_limits import Caller
from turnline.worker.turn.attempt import Parts, caller_of, grants_of
from turnline.worker.turn.checkpoints import Progress
from turnline.worker.turn.grants import Grants
from turnline.worker.turn.ledger import Payer
from turnline.worker.turn.model_lists import members_left
from turnline.worker.turn.plan import Plan

_LONGEST_S: Final = 120.0
"""For which a place in line is good, and then some."""


class Chosen(NamedTuple):
    """What is asked."""

    plan: Plan
    """With the model and the member."""
    provider: str
    """Name of its breaker."""
    wait_s: float
    """Seconds to wait first, since all breakers are open; else 0."""


async def choose(parts: Parts, lease: Lease, plan: Plan, progress: Progress) -> Chosen:
    """Choose the first model of a plan's list, and its first member, that has no open breaker.

    A turn goes on with the member by which it began: another one cannot read its thoughts.
    """
    failed, out = members_left(progress.left)
    began = _owner(progress.messages)
    members = parts.pool.order(lease.conversation_id, failed=failed, out=out, first=began)
    waits: dict[str, Chosen] = {}
    for model in plan.models:
        for member in members:
            provider = f"{member.base_url} {model}"
            if provider in waits:
                continue
            wait_s = await parts.breakers.wait_s(provider, lease.conversation_id)
            chosen = Chosen(plan.with_model(model).with_member(member), provider, wait_s)
            if not wait_s:
                return chosen
            waits[provider] = chosen
    return min(waits.values(), key=lambda it: it.wait_s)


async def find_room(
    parts: Parts,
    lease: Lease,
    payer: Payer,
    context: OpenAILLMContext,
    chosen: Chosen,
    *,
    progress: Progress,
    asks: bool,
) -> tuple[Chosen, Grants, float]:
    """Ask for a call: of the chosen member, and where that has no room, of the others.

    Args:
        parts: With the pool.
        lease: Of the conversation.
        payer: Whose turn it is.
        context: What is to be answered.
        chosen: What is to be asked.
        progress: Of the turn; one that has begun stays with its member.
        asks: False if no call is to be made yet.

    Returns:
        What is asked, its grants, and the seconds to wait first, in its line alone; else 0.
    """
    grants = grants_of(parts, lease, chosen.plan, payer, context)
    asked = [(chosen, grants, await grants.ask() if asks else 0.0)]
    is_bound = len(parts.pool) == 1 or _owner(progress.messages) is not None
    if is_bound or grants.waits_for == "tenant_limit":  # the same with all of them
        return asked[0]
    if not asked[0][2]:
        _leave_others(parts, caller_of(lease, payer), chosen.plan)
        return asked[0]
    failed, out = members_left(progress.left)
    for member in parts.pool.order(lease.conversation_id, failed=failed, out=out):
        if member == chosen.plan.member:
            continue
        provider = f"{member.base_url} {chosen.plan.settings.model}"
        name = lease.conversation_id
        if provider != chosen.provider and await parts.breakers.wait_s(provider, name):
            continue
        other = Chosen(chosen.plan.with_member(member), provider, 0.0)
        grants = grants_of(parts, lease, other.plan, payer, context)
        asked.append((other, grants, await grants.ask()))
        if not asked[-1][2]:
            break
    best = min(asked, key=lambda it: it[2])
    for it in asked:
        if it is not best:
            it[1].leave()
    return best


def _leave_others(parts: Parts, who: Caller, plan: Plan) -> None:
    """Give up a place that the turn may have in the line of another member."""
    model = plan.settings.model or plan.models[0]
    for number, limiter in enumerate(parts.limiters):
        if number != plan.member.number:
            limiter.leave(model, who, within_s=_LONGEST_S)


def leave_lines(parts: Parts, lease: Lease, payer: Payer, plan: Plan) -> None:
    """Give up the place in line: the turn ends without a call."""
    who = caller_of(lease, payer)
    for model in plan.models:
        for limiter in parts.limiters:
            limiter.leave(model, who)


def _owner(messages: Sequence[Message]) -> str | None:
    """Return by whose key a turn's replies were made; None if they have nothing of their own."""
    if not messages:
        return None
    owners: Iterable[str | None] = map(owner_of, reversed(messages))
    return next((it for it in owners if it is not None), None)
