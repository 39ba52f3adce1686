"""Unit tests of components/model."""
