"""Unit tests of components.wire."""
