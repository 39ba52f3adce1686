"""The worker controller: a pool of warm processes, one a rank, and engines on demand from them over a REST API."""
