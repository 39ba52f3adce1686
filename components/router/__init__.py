"""Knows who holds which KV blocks and who is busy; picks the decode worker."""
