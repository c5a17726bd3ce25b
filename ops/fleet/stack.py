"""A fleet of its own for demos, replays, benchmarks and drills: Redis, a model, real workers."""

import os
import platform
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Final, Self

from redis.exceptions import RedisError

from turnline.contracts.connection import SyncRedis
from turnline.contracts.errors import StoreUnavailable
from turnline.contracts.keys import shard_keys
from turnline.contracts.opening import open_sync
from turnline.ops.cli.failures import Failure
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.fleet.child import Child, ChildFailed
from turnline.ops.fleet.operator_connection import check_answers
from turnline.ops.fleet.queue_state import read_workers
from turnline.worker.settings import KEY, SettingsError, value_or_file

_PAUSE_S: Final = 0.02
_LOOK_S: Final = 0.3
"""How long a look may take; the server may be frozen."""
_OWN_SETTINGS: Final = ("REDIS_URL", "REDIS_URL_FILE", "WORKER_NAME", "SHARDS", "SERVE_SHARDS")


class Stack:
    """Redis, a simulated Grok (or Grok itself) and workers, all real processes, for a `with` block.

    Leaving the block, by whatever exception, ends every process by its id and leaves nothing
    behind; on Linux the kernel does the same if this process is killed. That promise is tied to the
    thread that starts a process: start workers from the main thread.

        with Stack(workers=2) as stack, SyncTurnClient.connect(stack.redis_url) as client:
            client.ask("c1", "Hello")
            stack.kill(0)

    Workers are counted from 0; the one with index n is named `worker-<n + 1>`.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        live: bool = False,
        redis_url: str | None = None,
        sim_options: Sequence[str] = (),
        worker_env: Mapping[str, str] | None = None,
        worker_module: str = "turnline.worker",
        processes: int = 0,
        environ: Mapping[str, str] = os.environ,
        ready_timeout_s: float = 60.0,
    ) -> None:
        """Describe the stack; `with` starts it and waits until all of it is ready.

        Args:
            workers: How many workers to start with.
            live: Talk to the provider that the environment names, without a simulator.
            redis_url: A running server; None starts a private one.
            sim_options: Options of `turnline sim`; paths in them must be absolute.
            worker_env: Settings of the workers, such as `TURNLINE_LEASE_S`; these win.
            worker_module: What a worker runs.
            processes: How many processes each worker keeps under a supervisor; 0: it has none.
            environ: What the processes inherit. Its `TURNLINE_` settings count only if `live`.
            ready_timeout_s: How long each part may take to start.
        """
        self._count = workers
        self._live = live
        self._given_url = redis_url
        self._sim_options = sim_options
        self._worker_env = dict(worker_env or {})
        self._worker_module = worker_module
        self._processes = processes
        self._environ = environ
        self._ready_timeout_s = ready_timeout_s
        self._workers: list[Child] = []
        self._sim: Child | None = None
        self._exit = ExitStack()
        self._connection: SyncRedis | None = None
        self.redis: EmbeddedRedis | None = None
        """The private server; None where one was given."""
        self.redis_url = redis_url or ""
        """Where Redis is, once started."""
        self.base_url = ""
        """Where the simulator is, once started; empty if `live`."""

    # -- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start everything.

        Raises:
            Failure: Redis does not answer, the key is missing, or a process did not start.
            EmbeddedRedisError: No private server can be had.
        """
        if self._live and not self._has_key():
            raise Failure(
                "XAI_API_KEY is not set. Get a key from https://console.x.ai, or leave --live out "
                "to use the simulated Grok."
            )
        try:
            self._start_redis()
            if not self._live:
                self._start_sim()
            for index in range(self._count):
                self.start(index)
            self.wait_ready()
        except BaseException:
            self._close(wait_s=0)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End everything; after an error without waiting for anybody."""
        self._close(wait_s=2.0 if kind is None else 0)

    def _start_redis(self) -> None:
        if self._given_url is not None:
            check_answers(self._given_url)
            self.redis_url = self._given_url
        else:
            self.redis = self._exit.enter_context(EmbeddedRedis())
            self.redis_url = self.redis.url
        self._connection = open_sync(self.redis_url, patience_s=3)
        self._exit.callback(self._connection.close)

    def _start_sim(self) -> None:
        arguments = ("-m", "turnline.ops.simulator", *self._sim_options)
        environ = self._plain_environ()
        self._sim = Child("the simulator", *arguments, environ=environ, says=True)
        self.base_url = self._sim.first_line(self._ready_timeout_s)

    def _close(self, *, wait_s: float) -> None:
        for worker in self._workers:  # all at once, then one after the other
            worker.signal(signal.SIGCONT)
            worker.signal(signal.SIGTERM if wait_s else signal.SIGKILL)
        for process in [*self._workers, *([self._sim] if self._sim else [])]:
            process.close(wait_s=wait_s)
        self._workers, self._sim = [], None
        self._exit.close()

    # -- workers --------------------------------------------------------------------------------

    @property
    def worker_names(self) -> list[str]:
        """Names of the workers, by index."""
        return [worker.name for worker in self._workers]

    def pid(self, index: int) -> int:
        """Return the process id of a worker, running or not."""
        return self._workers[index].pid

    def pid_of(self, name: str) -> int:
        """Return the process id of a worker by its name, as it says itself; 0 if none says so.

        The newest one: others of that name may have died just now.
        """
        assert self._connection is not None
        found = [it for it in read_workers(self._connection, shard_keys(0)) if it.name == name]
        return max(found, key=lambda it: it.started_at_ms).pid if found else 0

    @property
    def sim_pid(self) -> int | None:
        """Process id of the simulator; None if there is none."""
        return self._sim.pid if self._sim is not None else None

    def is_running(self, index: int) -> bool:
        """Return whether a worker has not ended; a stopped one has not."""
        return self._workers[index].is_running

    def is_ready(self, index: int) -> bool:
        """Return whether a worker takes turns; False as well while Redis does not answer."""
        try:
            with closing(open_sync(self.redis_url, patience_s=_LOOK_S)) as redis:
                return self._workers[index] not in self._missing(redis)
        except (RedisError, StoreUnavailable):
            return False

    def start(self, index: int | None = None) -> int:
        """Start a worker: the next one, or one in the place of one that ended.

        Returns:
            Its index. It may not be ready yet; see `wait_ready`.
        """
        index = len(self._workers) if index is None else index
        if index < len(self._workers):
            self._workers[index].close(wait_s=0)
        environ = self._worker_environ(index)
        words = ["--processes", str(self._processes)] if self._processes else []
        worker = Child(f"worker-{index + 1}", "-m", self._worker_module, *words, environ=environ)
        self._workers[index : index + 1] = [worker]
        return index

    def kill(self, index: int) -> None:
        """End a worker as a crash does (SIGKILL); returns when it is gone."""
        self._workers[index].signal(signal.SIGKILL)
        self._workers[index].popen.wait()

    def stop(self, index: int) -> None:
        """Freeze a worker (SIGSTOP)."""
        self._workers[index].signal(signal.SIGSTOP)

    def resume(self, index: int) -> None:
        """Let a frozen worker go on (SIGCONT)."""
        self._workers[index].signal(signal.SIGCONT)

    def terminate(self, index: int) -> None:
        """Ask a worker to drain and end (SIGTERM); see `wait`."""
        self._workers[index].signal(signal.SIGTERM)

    def wait(self, index: int, timeout_s: float | None = None) -> int:
        """Wait until a worker has ended and return its exit code, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: It has not.
        """
        return self._workers[index].popen.wait(timeout_s)

    def wait_ready(self) -> None:
        """Wait until every running worker takes turns.

        Raises:
            ChildFailed: One ended instead, or did not come up in time.
        """
        deadline = time.monotonic() + self._ready_timeout_s
        while True:
            assert self._connection is not None
            missing = self._missing(self._connection)
            self.check()  # one that has just ended is not missing
            if not missing:
                return
            if time.monotonic() > deadline:
                worker = missing[0]
                raise ChildFailed(f"{worker.name} did not get ready:\n{worker.last_words()}")
            time.sleep(_PAUSE_S)

    def check(self) -> None:
        """Make sure that no process ended except those that were asked to.

        Raises:
            ChildFailed: One did; the text has its last words.
        """
        for process in [*self._workers, *([self._sim] if self._sim else [])]:
            process.check()

    def log_of(self, index: int) -> str:
        """Return the last lines that a worker wrote to its log."""
        return self._workers[index].last_words()

    def _missing(self, redis: SyncRedis) -> list[Child]:
        here = [it for it in read_workers(redis, shard_keys(0)) if it.host == platform.node()]

        def is_missing(child: Child) -> bool:
            if self._processes:
                names = {it.name for it in here if it.name.startswith(f"{child.name}-")}
                return len(names) < self._processes
            return child.pid not in {it.pid for it in here}

        return [it for it in self._workers if it.is_running and is_missing(it)]

    def _has_key(self) -> bool:
        try:
            return value_or_file(self._environ, KEY) != ""
        except SettingsError as error:
            raise Failure(str(error)) from None

    def _plain_environ(self) -> dict[str, str]:
        """Return what processes inherit; no proxy stands between them and the simulator."""
        kept = {
            name: value
            for name, value in self._environ.items()
            if self._live or not name.startswith("TURNLINE_")
        }
        for name in _OWN_SETTINGS:
            kept.pop(f"TURNLINE_{name}", None)
        if not self._live:
            kept.pop(f"{KEY}_FILE", None)
        return kept if self._live else {**kept, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def _worker_environ(self, index: int) -> dict[str, str]:
        simulated = {"TURNLINE_BASE_URL": self.base_url, "XAI_API_KEY": "xai-simulated"}
        return {
            **self._plain_environ(),
            **({} if self._live else simulated),
            "TURNLINE_REDIS_URL": self.redis_url,
            "TURNLINE_WORKER_NAME": f"worker-{index + 1}",
            **self._worker_env,
        }
