"""Traces without a collector: none, and at no cost. With one: tests/e2e/test_tracing.py."""

import subprocess
import sys


def test_without_a_collector_nothing_is_made() -> None:
    """OpenTelemetry is not even imported."""
    program = """
import sys
from components.telemetry.tracing import carry, close_tracing, setup_tracing, span
setup_tracing("decode-0", "test", "", 1.0)
with span("generate", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", worker="decode-0") as traced:
    traced.event("first token")
    traced.set(outcome="finished", cached_tokens=None)
    assert carry() == ""
close_tracing()
sys.exit("opentelemetry" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
