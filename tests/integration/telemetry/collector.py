"""A collector: one that takes everything, and ones that behave badly."""

import asyncio
import gzip
import threading
import zlib
from collections.abc import Coroutine
from typing import Any, Literal, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from turnline.ops.bench.raw_http import Connection, RawServer, Request

Behaviour = Literal[
    "takes", "hangs", "fails", "refuses", "babbles", "floods", "dribbles", "is busy", "rejects"
]

REJECTED = ExportTraceServiceResponse(
    partial_success=ExportTracePartialSuccess(rejected_spans=2)
).SerializeToString()


class Collector(RawServer):
    """Listens on a loopback port, from a thread, until the block is left."""

    def __init__(self, behaviour: Behaviour = "takes") -> None:
        super().__init__()
        self._behaviour = behaviour
        self.requests: list[tuple[str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        """Of all requests, also those that are not taken."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._in_thread(self.__aenter__())
        if self._behaviour == "refuses":
            self._in_thread(self.__aexit__(None, None, None))
        return self

    def __exit__(self, *error: object) -> None:
        if self._behaviour != "refuses":
            self._in_thread(self.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _in_thread(self, work: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    @property
    def spans(self) -> list[Any]:
        """All spans taken, as protobuf, each with its resource's attributes."""
        found = []
        for path, body in self.requests:
            if path == "/v1/traces":
                for per in ExportTraceServiceRequest.FromString(body).resource_spans:
                    found += [span for scope in per.scope_spans for span in scope.spans]
        return found

    @property
    def resources(self) -> list[dict[str, str]]:
        """Attributes of the resources of all spans taken."""
        return [
            {pair.key: pair.value.string_value for pair in per.resource.attributes}
            for path, body in self.requests
            if path == "/v1/traces"
            for per in ExportTraceServiceRequest.FromString(body).resource_spans
        ]

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics taken, by name; the latest of each."""
        return {
            metric.name: metric
            for path, body in self.requests
            if path == "/v1/metrics"
            for per in ExportMetricsServiceRequest.FromString(body).resource_metrics
            for scope in per.scope_metrics
            for metric in scope.metrics
        }

    async def serve(self, connection: Connection, request: Request) -> None:
        self.headers.append(request.headers)
        match self._behaviour:
            case "hangs":
                await connection.client_left()
            case "babbles":
                while True:
                    await connection.send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 60_000 + b"\r\n")
            case "floods":
                await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                while True:
                    await connection.send(b"ff00\r\n" + b"x" * 0xFF00 + b"\r\n")
            case "dribbles":
                await connection.send(b"HTTP/1.1 200 OK\r\nX: ")
                while True:
                    await connection.send(b"x")
                    await asyncio.sleep(0.05)
            case "is busy" if len(self.headers) == 1:
                await connection.answer(503)
            case "fails":
                await connection.answer(500)
            case _:
                self._take(request)
                await connection.answer(200, REJECTED if self._behaviour == "rejects" else b"")

    def _take(self, request: Request) -> None:
        unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(
            request.headers.get("content-encoding", ""), bytes
        )
        self.requests.append((request.line.split()[1], unpack(request.raw)))
