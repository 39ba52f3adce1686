"""Tests of the decode worker's pure parts."""
