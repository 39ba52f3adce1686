"""Generates tokens: one process, one engine; takes requests from the bus and sends tokens back."""
