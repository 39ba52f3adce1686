"""The frame of every HTTP server of a graph: a hardened aiohttp, API keys, limits, TLS, and one shape of errors.

The routes stand in components, which take bodies from `Edge.read` and raise `PenstockError` for what goes wrong.
"""
