"""One run from start to finish: the fleet, its traffic, the disturbances and the check."""

import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, Literal

import msgspec

from turnline.contracts.opening import open_sync
from turnline.ops.chaos import clocks, sabotage
from turnline.ops.chaos.checker import check
from turnline.ops.chaos.disturbances import MALFORMED, planned
from turnline.ops.chaos.evidence import gather
from turnline.ops.chaos.fault_run import Driver, Worker
from turnline.ops.chaos.figures import Tell
from turnline.ops.chaos.report import Report, judge
from turnline.ops.chaos.simulated import SimAdmin
from turnline.ops.chaos.traffic import TrafficPlan
from turnline.ops.chaos.upgrade import old_workers, worker_beside
from turnline.ops.fleet.stack import Stack

_CLOCKS_OFF_S: Final = 3600.0
_SIM_OPTIONS: Final = ("--ttft-ms", "40", "--ledger-entries", "0")


Wires = Literal["chat", "responses", "both"]
"""How workers talk to the model; both: every second one in either way."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done."""

    seconds: float
    seed: int
    wire: Wires = "responses"
    workers: int = 6
    conversations: int = 40
    think_s: float = 1.5
    forgotten: float = 0.08
    patience_s: float = 90.0
    itl_ms: float = 4.0
    """Time between two words of the model."""
    scale: float = 1.0
    """Multiplies how often everything happens."""
    sabotage: str | None = None
    upgrade_from: str | None = None
    """A revision of this repository; half of the workers are of it."""
    keep: Path | None = None
    """Where Redis keeps its data; they stay there."""
    command: str = "turnline chaos"


def run(options: Run, tell: Tell) -> Report:
    """Carry a run out and check it. From the main thread only."""
    with ExitStack() as exits:
        scratch = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="turnline-chaos-")))
        home, workers = _fleet(options, scratch, exits)
        traffic = TrafficPlan(
            redis_url=home.redis_url,
            journal=str(scratch / "journal.json"),
            prefix=f"chaos-{options.seed}",
            seed=options.seed,
            conversations=options.conversations,
            think_s=options.think_s,
            forgotten=options.forgotten,
            patience_s=options.patience_s,
        )
        # Older revisions ask for a malformed reply again and again.
        malformed = MALFORMED if not options.upgrade_from else dict[str, float]()
        driver = Driver(
            home,
            workers,
            traffic,
            tell=tell,
            traffic_env=sabotage.environment(options.sabotage or ""),
            malformed=malformed,
        )
        plan = planned(options.seed, options.seconds, scale=options.scale)
        outcome = driver.run(plan, options.seconds, options.seed)
        tell("checking")
        with closing(open_sync(home.redis_url, patience_s=3)) as redis:
            names = [chat.conversation for chat in outcome.journal.chats]
            evidence = gather(redis, SimAdmin(home.base_url), names)
    violations = check(outcome.journal.chats, evidence, outcome.disturbances)
    return judge(outcome, evidence, violations, command=options.command, seed=options.seed)


def _fleet(options: Run, scratch: Path, exits: ExitStack) -> tuple[Stack, list[Worker]]:
    """Start Redis, the model and all workers, for as long as `exits` is not left."""
    env = {
        "TURNLINE_LOG_LEVEL": "warning",
        **sabotage.environment(options.sabotage or ""),
        **clocks.environment(_CLOCKS_OFF_S),
    }
    old = options.workers // 2 if options.upgrade_from else 0
    chatting = (options.workers - old) // 2 if options.wire == "both" else 0
    wire = "responses" if options.wire == "both" else options.wire
    model = ("--itl-ms", str(options.itl_ms), "--seed", str(options.seed))
    home = exits.enter_context(
        Stack(
            options.workers - old - chatting,
            redis_directory=options.keep or scratch / "redis",
            sim_options=(*_SIM_OPTIONS, *model),
            worker_env={"TURNLINE_WIRE": wire, **env},
        )
    )
    workers = [Worker(home, n, name) for n, name in enumerate(home.worker_names)]
    for n in range(chatting):
        chat = {"TURNLINE_WIRE": "chat", **env}
        workers.append(worker_beside(home, f"chat-{n + 1}", exits, chat))
    if options.upgrade_from:
        workers += old_workers(options.upgrade_from, home, old, exits)
    return home, workers
