"""Tests of the pure parts of the job queue and its workers."""
