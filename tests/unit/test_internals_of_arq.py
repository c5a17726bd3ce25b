"""What LeasedWorker overrides and uses of ARQ's worker is still there, with the same signature."""

import ast
import asyncio
import inspect
from typing import Any

import arq.constants
import arq.worker
import pytest

from turnline.contracts import keys
from turnline.worker.queue import leased_worker
from turnline.worker.queue.leased_worker import LeasedWorker

OVERRIDDEN = {"main", "_poll_iteration", "finish_job", "record_health", "close"}


def names_on_self(node: ast.AST, *contexts: type[ast.expr_context]) -> set[str]:
    """What is read from or set on `self` in a piece of code."""
    return {
        it.attr
        for it in ast.walk(node)
        if isinstance(it, ast.Attribute)
        and isinstance(it.ctx, contexts)
        and isinstance(it.value, ast.Name)
        and it.value.id == "self"
    }


def test_what_is_overridden_is_there_and_nothing_else_is_hidden() -> None:
    """A renamed one would never be called; one of a new name of ARQ's would be called by it."""
    both = {name for name in vars(LeasedWorker) if not name.startswith("__")}

    assert both & {*dir(arq.worker.Worker)} == OVERRIDDEN


@pytest.mark.parametrize("name", sorted(OVERRIDDEN))
def test_what_is_overridden_takes_the_same(name: str) -> None:
    """Parameters by name, kind and order."""
    ours, arqs = (
        [(it.name, it.kind) for it in inspect.signature(getattr(kind, name)).parameters.values()]
        for kind in (LeasedWorker, arq.worker.Worker)
    )

    assert ours == arqs


async def test_what_is_used_is_there() -> None:
    """Methods, and the attributes of a stock worker that LeasedWorker reads or changes."""
    (tree,) = (
        node
        for node in ast.parse(inspect.getsource(leased_worker)).body
        if isinstance(node, ast.ClassDef) and node.name == "LeasedWorker"
    )
    (init,) = (it for it in tree.body if isinstance(it, ast.FunctionDef) and it.name == "__init__")
    own = names_on_self(init, ast.Store) | vars(LeasedWorker).keys()
    used = names_on_self(tree, ast.Load, ast.Store) - own

    async def job(ctx: dict[Any, Any]) -> None:
        """Do nothing."""

    stock = arq.worker.Worker([job], redis_pool=None, handle_signals=False)

    assert {"tasks", "job_counter", "allow_pick_jobs", "heart_beat"} <= used
    assert [name for name in sorted(used) if not hasattr(stock, name)] == []
    assert isinstance(stock.tasks, dict)
    assert stock.loop is asyncio.get_running_loop()


def test_what_arq_calls_is_called_by_it() -> None:
    """A plain job is run by ARQ, which finishes it through the method that is overridden."""
    run_job: Any = arq.worker.Worker.run_job

    assert [*inspect.signature(run_job).parameters] == ["self", "job_id", "score"]
    assert "finish_job" in run_job.__code__.co_names


def test_keys_are_arqs() -> None:
    """ARQ finds a job that Turnline wrote, and the other way round."""
    assert arq.constants.job_key_prefix == keys.ARQ_JOB
    assert arq.constants.in_progress_key_prefix == keys.ARQ_IN_PROGRESS
    assert arq.constants.retry_key_prefix == keys.ARQ_RETRY
    assert arq.constants.result_key_prefix == keys.ARQ_RESULT
