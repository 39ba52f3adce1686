"""Unit tests of components/engine, without engines."""
