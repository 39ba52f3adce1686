"""Tests of the worker worker's pure parts."""
