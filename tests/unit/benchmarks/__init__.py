"""Unit tests of benchmarks: what they compute, not what they measure."""
