"""A collector on a raw socket: one that takes everything, and ones that behave badly."""

import contextlib
import gzip
import socket
import threading
import zlib
from types import TracebackType
from typing import Any, Literal, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

Behaviour = Literal[
    "takes", "hangs", "fails", "refuses", "babbles", "floods", "dribbles", "is busy", "rejects"
]


class Collector:
    """Listens on a loopback port, from a thread, until the block is left."""

    def __init__(self, behaviour: Behaviour = "takes") -> None:
        self._behaviour = behaviour
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        if behaviour != "refuses":
            self._socket.listen()
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self.requests: list[tuple[str, bytes]] = []
        self.headers: list[dict[bytes, bytes]] = []
        """Of all requests, also those that are not taken."""
        self.connections = 0
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        if self._behaviour != "refuses":
            self._start(self._accept)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        for connection in [self._socket, *self._open]:
            with_shutdown(connection)
        for thread in self._threads:
            thread.join(10)

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

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            stream = connection.makefile("rb")
            while head := stream.readline():
                headers = {}
                while (line := stream.readline().strip()) != b"":
                    name, _, value = line.partition(b":")
                    headers[name.strip().lower()] = value.strip()
                body = stream.read(int(headers[b"content-length"]))
                self.headers.append(headers)
                if self._behaviour == "hangs":
                    stream.read()
                    return
                if self._behaviour == "babbles":
                    while True:
                        connection.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 60_000 + b"\r\n")
                if self._behaviour == "floods":
                    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    while True:
                        connection.sendall(b"ff00\r\n" + b"x" * 0xFF00 + b"\r\n")
                if self._behaviour == "dribbles":
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                    while not self._closing.wait(0.05):
                        connection.sendall(b"x")
                    return
                if self._behaviour == "is busy" and len(self.headers) == 1:
                    connection.sendall(
                        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
                    )
                    continue
                if self._behaviour == "fails":
                    connection.sendall(
                        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
                    )
                    continue
                match headers.get(b"content-encoding"):
                    case b"gzip":
                        body = gzip.decompress(body)
                    case b"deflate":
                        body = zlib.decompress(body)
                    case _:
                        pass
                self.requests.append((head.split()[1].decode(), body))
                answer = b""
                if self._behaviour == "rejects":
                    rejected = ExportTracePartialSuccess(rejected_spans=2)
                    answer = ExportTraceServiceResponse(
                        partial_success=rejected
                    ).SerializeToString()
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer)
                )
        except OSError:
            pass


def with_shutdown(connection: socket.socket) -> None:
    """Close a socket, also one that a thread reads from."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
