"""Traces: what a request spent its time on, in all the processes it passed, as OpenTelemetry spans sent to a collector.

Without a collector no span is made, and OpenTelemetry is not even imported. Spans never hold what a client sent.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

Attribute = str | bool | int | float
"""What OpenTelemetry takes as an attribute's value."""

_EXPORT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 2.0

_tracer: "Tracer | None" = None
_provider: Any = None


class Span:
    """A part of a request's way through one process; this one is collected by nobody."""

    def set(self, **attributes: Attribute | None) -> None:
        """Note facts, under ``penstock.``; what is None is left out."""

    def event(self, name: str) -> None:
        """Note that something happened now."""


class _Recorded(Span):
    """One that is collected."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def set(self, **attributes: Attribute | None) -> None:
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(f"penstock.{name}", value)

    def event(self, name: str) -> None:
        self._span.add_event(name)


_NOBODYS = Span()


def setup_tracing(process: str, graph: str, otlp_endpoint: str, ratio: float) -> None:
    """From now on send this process's spans to a collector; one that is away costs spans, nothing else.

    Args:
        process: its name in the graph, such as ``decode-0``.
        graph: the graph's name.
        otlp_endpoint: of the collector, OTLP over HTTP, such as ``http://127.0.0.1:4318``; empty: make no spans.
        ratio: the share of requests to trace, of those that come without a trace; 0 to 1.
    """
    global _tracer, _provider  # a process has one collector, as it has one log
    if not otlp_endpoint:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    component = process.partition("-")[0]
    resource = Resource({"service.name": f"penstock-{component}", "service.instance.id": f"{graph}/{process}"})
    _provider = TracerProvider(sampler=ParentBasedTraceIdRatio(ratio), resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{otlp_endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_TIMEOUT_S)
    _provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
    _tracer = _provider.get_tracer("penstock")


def close_tracing() -> None:
    """Send what is left, for two seconds at most; a collector that is away shall hold nobody."""
    if _provider is not None:
        sending = Thread(target=_provider.force_flush, daemon=True)
        sending.start()
        sending.join(_CLOSE_TIMEOUT_S)


@contextmanager
def span(name: str, parent: str = "", **attributes: Attribute | None) -> Iterator[Span]:
    """Record what happens in this context as a span; those begun in it, also by tasks, belong to it.

    Args:
        name: what is done, in few words.
        parent: the span it belongs to in another process, as `carry` returned it there; else it belongs to the one it is in.
        attributes: as for `Span.set`.
    """
    if _tracer is None:
        yield _NOBODYS
        return
    from opentelemetry.trace import Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    with _tracer.start_as_current_span(name, context, record_exception=False, set_status_on_exception=False) as begun:
        recorded = _Recorded(begun)
        recorded.set(**attributes)
        try:
            yield recorded
        except BaseException as error:
            # By its type only: the text may hold what the client sent.
            begun.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def carry() -> str:
    """Return the present span for another process, as W3C's ``traceparent``; empty without one."""
    if _tracer is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")
