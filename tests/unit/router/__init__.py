"""Tests of the router's pure core."""
