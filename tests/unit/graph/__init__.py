"""Unit tests of components.graph."""
