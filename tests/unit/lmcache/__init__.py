"""Tests of `components.lmcache`."""
