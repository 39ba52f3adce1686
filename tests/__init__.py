"""Tests: `unit` mirrors components/, `integration` goes by flow on a real NATS server, `e2e` launches whole graphs."""
