"""One run from start to finish: the fleet, its traffic, the disturbances and the check."""

import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from turnline.contracts.keys import shard_keys
from turnline.contracts.layout import Layout
from turnline.contracts.opening import open_sync
from turnline.ops.chaos import clocks, sabotage
from turnline.ops.chaos.checker import check
from turnline.ops.chaos.disturbances import MALFORMED, planned
from turnline.ops.chaos.evidence import gather
from turnline.ops.chaos.failover_losses import attributed
from turnline.ops.chaos.fault_run import Driver, Worker
from turnline.ops.chaos.figures import Tell
from turnline.ops.chaos.report import Report, judge
from turnline.ops.chaos.reshards import Reshards
from turnline.ops.chaos.run_options import Run
from turnline.ops.chaos.simulated import SimAdmin
from turnline.ops.chaos.stores import (
    DURABLE,
    SETTLE_SOON,
    BehindSentinels,
    OnCluster,
    OneServer,
    Store,
)
from turnline.ops.chaos.traffic import TrafficPlan
from turnline.ops.chaos.upgrade import old_workers, worker_beside
from turnline.ops.deployments import Cluster, Sentinels
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.fleet.stack import Stack

_CLOCKS_OFF_S: Final = 3600.0
_SLOTS_OF_A_SHARD: Final = 16
"""Of a worker: there are times when one of the shards has all conversations."""
_TURN_TOKENS: Final = 700
"""Budget of a turn, with limits."""
_BUDGETS: Final = f"""
[turn]
tokens = {_TURN_TOKENS}
[tenant]
concurrency = 12
[tenants.acme]
concurrency = 3
waiting = 5
weight = 2
[tenants.globex]
rate = "5rps+400_000tpm"
"""
_ALLOWED: Final = ("--rps", "25", "--tpm", "400000")
"""By the provider, with limits."""
_SIM_OPTIONS: Final = ("--ttft-ms", "40", "--ledger-entries", "0")


def run(options: Run, tell: Tell) -> Report:
    """Carry a run out and check it. From the main thread only."""
    with ExitStack() as exits:
        scratch = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="turnline-chaos-")))
        store = _store(options, scratch, exits)
        if options.reshard is not None:
            _say_how_many_shards(store.url, options.shards)
        budgets = scratch / "budgets.toml"
        budgets.write_text(_BUDGETS)
        home, workers = _fleet(options, exits, store.url, budgets)
        traffic = TrafficPlan(
            redis_url=store.url,
            shards=options.numbers,
            client_patience_s=options.client_patience_s,
            wait_replicas=options.wait_replicas,
            journal=str(scratch / "journal.json"),
            prefix=f"chaos-{options.seed}",
            seed=options.seed,
            conversations=options.conversations,
            think_s=options.think_s,
            forgotten=options.forgotten,
            patience_s=options.patience_s,
            is_new=not options.upgrade_from,
            tenants=not options.upgrade_from,
        )
        # Older revisions ask for a malformed reply again and again.
        malformed = MALFORMED if not options.upgrade_from else dict[str, float]()
        driver = Driver(
            home,
            store,
            workers,
            traffic,
            tell=tell,
            traffic_env=sabotage.environment(options.sabotage or ""),
            malformed=malformed,
            reshards=_reshards(options, store.url),
        )
        plan = planned(
            options.seed, options.seconds, scale=options.scale, per_minute=store.per_minute
        )
        outcome = driver.run(plan, options.seconds, options.seed)
        tell("checking")
        chats, done = outcome.journal.chats, outcome.disturbances
        names = [chat.conversation for chat in chats]
        evidence = gather(store.url, SimAdmin(home.base_url), names)
    if options.limits:
        evidence.turn_tokens = _TURN_TOKENS
    found = check(chats, evidence, done)
    return judge(outcome, evidence, attributed(found, chats, evidence, done), options)


def _store(options: Run, scratch: Path, exits: ExitStack) -> Store:
    """Start the servers, until `exits` is left."""
    shards = max(options.numbers)
    match options.deployment:
        case "cluster":
            cluster = exits.enter_context(Cluster(options=DURABLE))
            return OnCluster(cluster, shards)
        case "sentinel":
            watched = Sentinels(failover_timeout_ms=2_000, periods_ms=SETTLE_SOON, options=DURABLE)
            return BehindSentinels(exits.enter_context(watched), shards)
        case "server":
            server = EmbeddedRedis(options.keep or scratch / "redis")
            return OneServer(exits.enter_context(server), shards)


def _say_how_many_shards(url: str, shards: int) -> None:
    """Do what the first worker does: those that come serve more than the fleet has."""
    with closing(open_sync(url, patience_s=3)) as redis:
        redis.execute_command("HSET", shard_keys(0).fleet, *Layout(shards).fields())


def _reshards(options: Run, url: str) -> Reshards | None:
    if options.reshard is None:
        return None
    numbers = (options.shards, options.reshard)
    return Reshards(url, *numbers, options.seed, wait_replicas=options.wait_replicas)


def _fleet(
    options: Run, exits: ExitStack, redis_url: str, budgets: Path
) -> tuple[Stack, list[Worker]]:
    """Start the model and all workers, until `exits` is left."""
    shards = max(options.numbers)
    env = {
        "TURNLINE_SHARDS": str(shards),
        "TURNLINE_LOG_LEVEL": "warning",
        **sabotage.environment(options.sabotage or ""),
        **clocks.environment(_CLOCKS_OFF_S),
    }
    if options.limits:
        env["TURNLINE_BUDGETS"] = str(budgets)
    if options.reshard is not None:
        env["TURNLINE_SLOTS"] = str(shards * _SLOTS_OF_A_SHARD)
    old = options.workers // 2 if options.upgrade_from else 0
    chatting = (options.workers - old) // 2 if options.wire == "both" else 0
    wire = "responses" if options.wire == "both" else options.wire
    model = ("--itl-ms", str(options.itl_ms), "--seed", str(options.seed))
    home = exits.enter_context(
        Stack(
            options.workers - old - chatting,
            redis_url=redis_url,
            sim_options=(*_SIM_OPTIONS, *model, *(_ALLOWED if options.limits else ())),
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
