"""Unit tests of the worker controller."""
