"""The results of a run: one table, or the same as JSON."""

from collections import Counter
from collections.abc import Sequence

import msgspec
from rich.console import Console

from turnline.ops.chaos.checker import COLUMNS, Column, Violation
from turnline.ops.chaos.evidence import Evidence
from turnline.ops.chaos.fault_run import Outcome
from turnline.ops.chaos.figures import Drilled, percentile
from turnline.ops.chaos.journal import Chat
from turnline.ops.chaos.outages import longest_outages_s, name_of
from turnline.ops.chaos.recovery import recoveries_s
from turnline.ops.chaos.reshards import Resharded
from turnline.ops.chaos.run_options import Run
from turnline.ops.chaos.spending import token_difference
from turnline.ops.chaos.thoughts import repairs
from turnline.ops.cli.output import say, table

_NAMED = 12
_OF_FAILOVERS: frozenset[Column] = frozenset({"lost by failover", "shown, then lost"})
"""Violations that are printed one by one."""


class Report(msgspec.Struct, kw_only=True):
    """The figures of one run."""

    command: str
    seed: int
    seconds: float
    turns: int
    """Messages that were accepted, in conversations that were not forgotten on purpose."""
    conversations: int
    forgotten: int
    """Conversations that were forgotten while they ran."""
    ends: dict[str, int]
    """How the turns ended."""
    failures: dict[str, int]
    """Codes of those that failed."""
    readers: int
    resumed: int
    """Times that readers and followers connected again."""
    calls: int
    """Requests that the model got."""
    kills: int
    stops: int
    terminations: int
    redis_restarts: int
    other: dict[str, int]
    """Flushed scripts, cut connections and so on."""
    faults: int
    """How often scenarios of the simulator struck."""
    refused_starts: int
    violations: dict[str, int]
    token_difference: int
    """Tokens by which the ledgers differ from the model's own record."""
    repairs: int
    """Calls whose earlier reasoning the model refused; they were made again without it."""
    wires: dict[str, int]
    """Requests by wire."""
    recovery_p50_s: float
    recovery_p99_s: float
    slowest_recovery_s: float
    """From a SIGKILL to the first new text of a turn that it cut off; faults and later
    disturbances included."""
    recoveries: int
    failovers: dict[str, int]
    """How often another server took over, by what was done."""
    lost_by_failover: dict[str, int]
    """The columns of what failovers lost, by what was done."""
    longest_outages_s: dict[str, float]
    """Slowest call of a producer, by what was done to the servers meanwhile."""
    client_patience_s: float
    """After how long without a server a client gives up."""
    resharded: Resharded | None
    """None where the fleet kept its number of shards."""
    named: list[Violation]
    deaths: list[str]
    defects: list[str]

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept. That a crash loses what no replica had is none."""
        broken = {name: n for name, n in self.violations.items() if name not in _OF_FAILOVERS}
        return not any(broken.values()) and not self.lost_by_failover.get("failover", 0)


def judge(
    outcome: Outcome,
    evidence: Evidence,
    violations: Sequence[Violation],
    run: Run,
) -> Report:
    """Count everything."""
    chats = [chat for chat in outcome.journal.chats if not chat.forgotten]
    kinds = Counter[str](each.kind for each in outcome.disturbances)
    found = [*violations, *_of_the_run(outcome), *_of_resharding(outcome.resharded, evidence)]
    left = [evidence.left[chat.conversation] for chat in chats]
    kills = [each for each in outcome.disturbances if each.kind == "kill"]
    recoveries = recoveries_s((it.events for it in left), kills)
    shown = [shown for chat in chats for shown in chat.shown]
    return Report(
        command=run.command,
        seed=run.seed,
        seconds=round(outcome.seconds, 1),
        turns=sum(sent.outcome == "accepted" for chat in chats for sent in chat.sent),
        conversations=len(chats),
        forgotten=len(outcome.journal.chats) - len(chats),
        ends=dict(Counter[str](record.state for it in left for record in it.records.values())),
        failures=dict(Counter(code for _, _, code in evidence.dead)),
        readers=len(shown) + len(chats),
        resumed=sum(it.resumed for it in shown) + sum(chat.resumed for chat in chats),
        calls=sum(map(len, evidence.requests.values())),
        kills=kinds.pop("kill", 0),
        stops=kinds.pop("stop", 0),
        terminations=kinds.pop("term", 0),
        redis_restarts=kinds.pop("redis-kill", 0) + kinds.pop("redis-clean", 0),
        other=dict(kinds),
        faults=outcome.faults,
        refused_starts=outcome.refused_starts,
        violations=_by_column(found),
        token_difference=_token_difference(chats, evidence),
        repairs=sum(map(repairs, left)),
        wires=_wires(evidence),
        recovery_p50_s=round(percentile(recoveries, 0.5), 2),
        recovery_p99_s=round(percentile(recoveries, 0.99), 2),
        slowest_recovery_s=round(recoveries[-1], 2) if recoveries else 0.0,
        recoveries=len(recoveries),
        failovers=dict(Counter(name_of(it) for it in outcome.disturbances if it.failed_over)),
        lost_by_failover=dict(Counter(it.by for it in found if it.by)),
        longest_outages_s=longest_outages_s(outcome.journal, outcome.disturbances, evidence.layout),
        client_patience_s=run.client_patience_s,
        resharded=outcome.resharded,
        named=found[:200],
        deaths=outcome.deaths,
        defects=outcome.journal.defects,
    )


def _by_column(found: Sequence[Violation]) -> dict[str, int]:
    counts = Counter[str](violation.column for violation in found)
    return {column: counts[column] for column in COLUMNS}


def _token_difference(chats: Sequence[Chat], evidence: Evidence) -> int:
    names = [chat.conversation for chat in chats]
    return sum(
        token_difference(evidence.left[name], evidence.requests.get(name, ())) for name in names
    )


def _wires(evidence: Evidence) -> dict[str, int]:
    return dict(Counter[str](it.wire for its in evidence.requests.values() for it in its))


def _of_the_run(outcome: Outcome) -> list[Violation]:
    """Return what went wrong outside of any conversation."""
    broken = [f"a worker died: {words}" for words in outcome.deaths]
    broken += [f"a client raised: {words}" for words in outcome.journal.defects]
    if not outcome.is_done:
        broken.append("producers and readers did not come to an end")
    found = [Violation(column="broken", conversation="", what=what) for what in broken]
    found += [
        Violation(
            column="producer errors",
            conversation=it.conversation,
            what=f"{it.verb} after {it.took_ms / 1000:.1f} s: {it.what}",
        )
        for it in outcome.journal.errors
    ]
    if outcome.on_queue:
        what = f"{outcome.on_queue} conversations were left on the queue"
        found.append(Violation(column="lost", conversation="", what=what))
    return found


def _of_resharding(resharded: Resharded | None, evidence: Evidence) -> list[Violation]:
    """Return what went wrong with the number of shards."""
    if resharded is None:
        return []
    layout, broken = evidence.layout, list(resharded.failures)
    if layout.before or layout.shards != resharded.shards:
        broken.append(f"the fleet was to have {resharded.shards} shards in the end: {layout}")
    if evidence.disagreeing:
        broken.append(f"shards {evidence.disagreeing} do not know that there are {layout.shards}")
    return [Violation(column="broken", conversation="", what=what) for what in broken]


def show(report: Report, to: Console) -> None:
    """Print the table, and the first violations by name."""
    rows = table(
        "", "count", title=f"seed {report.seed}, {report.seconds:.0f} s", numbers=("count",)
    )
    ends = ", ".join(f"{count} {state}" for state, count in sorted(report.ends.items()))
    others = ", ".join(f"{count} {kind}" for kind, count in sorted(report.other.items()))
    for name, value in (
        ("turns", report.turns),
        ("kills (SIGKILL)", report.kills),
        ("stops (SIGSTOP)", report.stops),
        ("terminations (SIGTERM)", report.terminations),
        ("Redis restarts", report.redis_restarts),
        ("model faults", report.faults),
        *_resharding(report.resharded),
    ):
        rows.add_row(name, f"{value:,}")
    rows.add_section()
    for column in COLUMNS:
        count = report.violations[column]
        rows.add_row(column, f"{count:,}", style="" if count == 0 else "bold red")
    rows.add_row("token difference", f"{report.token_difference:,}")
    rows.add_section()
    rows.add_row("recovery p50, s", f"{report.recovery_p50_s:.2f}")
    rows.add_row("recovery p99, s", f"{report.recovery_p99_s:.2f}")
    rows.add_row("slowest recovery, s", f"{report.slowest_recovery_s:.2f}")
    wires = ", ".join(f"{count} {wire}" for wire, count in sorted(report.wires.items()))
    to.print(rows)
    failures = ", ".join(f"{count} {code}" for code, count in sorted(report.failures.items()))
    say(to, f"Turns: {ends}. Failures: {failures or 'none'}.")
    say(
        to,
        f"{report.conversations} conversations, {report.forgotten} more forgotten while they ran; "
        f"{report.readers} readers, connected again {report.resumed} times; {report.calls} model "
        f"calls ({wires}), {report.repairs} repairs of refused reasoning; "
        f"{report.recoveries} turns cut off by kills. Also {others}; "
        f"{report.refused_starts} starts while Redis was away.",
    )
    _show_servers(report, to)
    for violation in report.named[:_NAMED]:
        where = " ".join(filter(None, (violation.conversation, violation.turn)))
        by = f" ({violation.by})" if violation.by else ""
        say(to, f"{violation.column}: {where}: {violation.what}{by}", "red")
    if len(report.named) > _NAMED:
        say(to, f"... and {sum(report.violations.values()) - _NAMED} more", "red")


def _resharding(resharded: Resharded | None) -> list[tuple[str, int]]:
    if resharded is None:
        return []
    return [
        ("reshards", resharded.done),
        ("reshards killed", resharded.killed),
        ("reshards frozen", resharded.frozen),
        ("conversations moved", resharded.moved),
    ]


def _show_servers(report: Report, to: Console) -> None:
    """Print how often servers were replaced, and how long producers waited."""
    failovers = ", ".join(f"{count} {kind}" for kind, count in sorted(report.failovers.items()))
    if failovers:
        say(to, f"Failovers: {failovers}.")
    outages = ", ".join(f"{kind} {s:.2f} s" for kind, s in sorted(report.longest_outages_s.items()))
    say(
        to,
        f"Longest call of a producer by disturbance: {outages or 'none'}; "
        f"clients have {report.client_patience_s:g} s of patience.",
    )


def show_drill(drilled: Drilled, to: Console) -> None:
    """Print the figures of one drill; those outside of their bounds are marked."""
    rows = table(drilled.name, "", "bound", title=drilled.title, numbers=("", "bound"))
    for row in drilled.rows:
        rows.add_row(row.what, row.measured, row.bound, style="" if row.is_kept else "bold red")
    to.print(rows)
