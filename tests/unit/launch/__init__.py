"""Unit tests of `components.launch`."""
