"""Unit tests of components.telemetry."""
