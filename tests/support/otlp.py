"""An OpenTelemetry collector that keeps what it is sent: OTLP over HTTP, on a free port, in a thread of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class SeenSpan:
    """One span.

    Attributes:
        service: of whose process.
        name: what was done.
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        parent_id: the span it belongs to; empty for the first.
        attributes: by name.
        duration_s: its length.
    """

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    duration_s: float


@dataclass
class Collector:
    """What came.

    Attributes:
        endpoint: where to send.
        spans: in the order of their arrival.
    """

    endpoint: str
    spans: list[SeenSpan] = field(default_factory=list)

    def of(self, trace_id: str) -> dict[str, SeenSpan]:
        """Return the spans of one trace by name; of one name the last."""
        return {span.name: span for span in self.spans if span.trace_id == trace_id}


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector."""

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.spans += _spans(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    taken = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _spans(body: bytes) -> Iterator[SeenSpan]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = next(entry.value.string_value for entry in resource.resource.attributes if entry.key == "service.name")
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            attributes = {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in span.attributes}
            ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
            yield SeenSpan(service, span.name, *ids, attributes, (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9)
