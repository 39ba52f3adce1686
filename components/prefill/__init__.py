"""Computes the KV of prompts for decode workers: takes jobs from a durable queue, says when LMCache has what it computed."""
