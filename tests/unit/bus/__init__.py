"""Tests of what the bus does without a server."""
