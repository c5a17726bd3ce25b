"""Breaks one promise on purpose, in the processes of a drill, to see that the checker names it.

The patches are applied at the start of a process whose environment says so; `site/` holds the hook
by which a worker finds them. Nothing here is imported by a worker that is left alone.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import msgspec

VARIABLE: Final = "CHAOS_SABOTAGE"


class LuaPatch(NamedTuple):
    """A text that occurs once in a script, and its replacement."""

    script: str
    old: str
    new: str


def _lua(*patches: LuaPatch) -> Callable[[], None]:
    return lambda: _patch_scripts(patches)


def _keep_abandoned() -> None:
    """Have calls of abandoned attempts counted as the answer's."""
    ledger: Any = importlib.import_module("turnline.worker.turn.ledger").Ledger
    plain = ledger.entries.fget

    def entries(it: Any) -> Any:
        return [msgspec.structs.replace(call, abandoned=False) for call in plain(it)]

    ledger.entries = property(entries)


def _mix_totals() -> None:
    """Add abandoned spend to the usage in the totals, though the entries tell them apart."""
    store: Any = importlib.import_module("turnline.worker.store.conversations")
    plain = store._totals  # noqa: SLF001  patching is what this is for

    def mixed(effects: Any) -> Any:
        return [(name.replace("a.", "u.", 1), amount) for name, amount in plain(effects)]

    store._totals = mixed  # noqa: SLF001


def _forget_calls() -> None:
    """Leave calls of abandoned attempts out of the ledger."""
    ledger: Any = importlib.import_module("turnline.worker.turn.ledger").Ledger
    plain = ledger.entries.fget

    def entries(it: Any) -> Any:
        return [call for call in plain(it) if not call.abandoned]

    ledger.entries = property(entries)


def _spend_on_answers_only() -> None:
    """Leave calls of abandoned attempts out of what is spent."""
    store: Any = importlib.import_module("turnline.worker.store.conversations")
    plain = store.spent_by

    def spent_by(calls: Any) -> Any:
        return plain([call for call in calls if not call.abandoned])

    store.spent_by = spent_by


def _bend_replies() -> None:
    """Publish another text than the one that is committed."""
    turn_run: Any = importlib.import_module("turnline.worker.turn.run").TurnRun
    plain = turn_run._text  # noqa: SLF001

    def text(run: Any, turn: Any) -> Any:
        return plain(run, turn) + "."

    turn_run._text = text  # noqa: SLF001


def _forget_messages() -> None:
    """Sometimes commit without the messages."""
    store: Any = importlib.import_module("turnline.worker.store.conversations")
    plain = store._counted  # noqa: SLF001

    def counted(effects: Any, shared: Any) -> Any:
        if sum(effects.turn_id.encode()) % 29 == 0 and not effects.rewrite:
            effects = type(effects)(
                **{**{n: getattr(effects, n) for n in effects.__struct_fields__}, "messages": ()}
            )
        return plain(effects, shared)

    store._counted = counted  # noqa: SLF001


def _bound_reasoning(most_bytes: int) -> None:
    """Keep so few bytes of reasoning at each commit."""
    commit: Any = importlib.import_module("turnline.worker.turn.commit")
    plain = commit.bound_reasoning

    def bound(messages: Any, own_from: int, _: int) -> Any:
        return plain(messages, own_from, most_bytes)

    commit.bound_reasoning = bound


_HELD: Final = "if redis.call('GET', in_progress) ~= lease then"
SABOTAGES: Final[Mapping[str, tuple[str, Callable[[], None]]]] = {
    "no-fence": (
        "commit and publish without asking who holds the lease",
        _lua(
            LuaPatch("commit", "if not held then", "if false then"),
            LuaPatch("emit", _HELD, "if false then"),
            LuaPatch("emit", "if entry_id ~= '' and (", "if false and ("),
            # Nor does the heartbeat tell the holder, which it mostly does before the holder writes.
            LuaPatch("renew", "reply[#reply + 1] = ARGV[at]\n", "\n"),
        ),
    ),
    "no-duplicate-check": (
        "let a message in again under the same turn id",
        _lua(LuaPatch("submit", "if record then", "if false then")),
    ),
    "blind-release": (
        "take a conversation off the queue without looking at its inbox",
        _lua(
            LuaPatch("commit", "if waiting[1] and afterwards == 'go_on' then", "if false then"),
            LuaPatch(
                "commit",
                "if waiting[1] then\n  redis.call('ZADD'",
                "if false then\n  redis.call('ZADD'",
            ),
            LuaPatch("release", "if waiting == 0 then", "if true then"),
        ),
    ),
    "no-terminal-event": (
        "drop one in thirty terminal events",
        _lua(
            LuaPatch(
                "commit",
                "ids[#ids + 1] = redis.call('XADD', events, ",
                "if not string.find(ARGV[at], '\"text_delta\"') and string.find(turn_id, '1$') "
                "then return 1 end ids[#ids + 1] = redis.call('XADD', events, ",
            )
        ),
    ),
    "same-attempt": (
        "do not count attempts",
        _lua(
            LuaPatch(
                "load",
                "attempt = tried + (again and 0 or 1)",
                "attempt = 1",
            )
        ),
    ),
    "newest-first": (
        "run the inbox from its end",
        _lua(
            LuaPatch(
                "load",
                "local entries = redis.call('XRANGE', inbox, '-', '+', 'COUNT', batch)",
                "local entries = redis.call('XREVRANGE', inbox, '+', '-', 'COUNT', 1)",
            ),
            LuaPatch(
                "commit",
                "local waiting = redis.call('XRANGE', inbox, '-', '+', 'COUNT', batch)",
                "local waiting = redis.call('XREVRANGE', inbox, '+', '-', 'COUNT', 1)",
            ),
        ),
    ),
    "no-expiry": (
        "give a conversation's keys no time to live when a turn is committed",
        _lua(
            LuaPatch(
                "commit",
                "  redis.call('PEXPIRE', key, kept)\n",
                "  redis.call('PERSIST', context)\n",
            ),
        ),
    ),
    "half-forgotten": (
        "leave the ledger of a forgotten conversation",
        _lua(LuaPatch("forget", "calls, events, later,\n  copies, job, in_progress)", "turns)")),
    ),
    "count-abandoned": ("count calls of abandoned attempts as the answer's", _keep_abandoned),
    "mixed-totals": ("add abandoned spend to the usage of answers", _mix_totals),
    "forget-calls": ("leave abandoned calls out of the ledger", _forget_calls),
    "spend-answers": ("leave abandoned calls out of what is spent", _spend_on_answers_only),
    "other-text": ("publish a text that was not committed", _bend_replies),
    "no-reasoning": (
        "commit answers without the reasoning behind them",
        lambda: _bound_reasoning(0),
    ),
    "one-reasoning": ("drop older reasoning with each commit", lambda: _bound_reasoning(1)),
    "forget-messages": ("commit some turns without their messages", _forget_messages),
}


def environment(name: str) -> dict[str, str]:
    """Return the variables that break this promise in a process started with them.

    With an empty name nothing is broken; the process only looks into `site/`.
    """
    return {VARIABLE: name, "PYTHONPATH": str(Path(__file__).parent / "site")}


def apply_from_environment() -> None:
    """Break what the environment asks for, if anything."""
    name = os.environ.get(VARIABLE)
    if name:
        SABOTAGES[name][1]()


def _patch_scripts(patches: tuple[LuaPatch, ...]) -> None:
    """Have scripts read from disk with changes. They are read when their modules are imported.

    Raises:
        RuntimeError: (when a script is read) The text to be replaced does not stand there once.
    """
    assert "turnline.contracts.scripts" not in sys.modules, "too late: scripts are read already"
    plain = resources.files

    def files(package: Any) -> Any:
        folder = plain(package)
        if not str(package).startswith("turnline.") or folder.name not in {"scripts", "lua"}:
            return folder

        def joinpath(name: str) -> Any:
            def read_text(encoding: str) -> str:
                source = folder.joinpath(name).read_text(encoding)
                return patched(name.removesuffix(".lua"), source, patches)

            return SimpleNamespace(read_text=read_text)

        return SimpleNamespace(joinpath=joinpath)

    resources.files = files


def patched(script: str, text: str, patches: tuple[LuaPatch, ...]) -> str:
    """Return a script's text with the patches meant for it.

    Raises:
        RuntimeError: The text to be replaced does not stand there exactly once.
    """
    for patch in patches:
        if patch.script != script:
            continue
        if text.count(patch.old) != 1:
            raise RuntimeError(f"{script}.lua has changed: {patch.old!r} does not stand there once")
        text = text.replace(patch.old, patch.new)
    return text
