"""The cache controller: LMCache's controller interface over REST, for in-process workers and for multi-process servers.

Pure: `hashing` (how LMCache hashes chunks of tokens), `roster` (who is there), `holdings` (who holds which chunks), `lookup`
(tokens to holders), `contract` (the API's bodies). I/O: `lmcache_protocol` (the only code that knows LMCache's messages and
ZeroMQ), `workers` and `servers` (the two kinds of instances), `app` (HTTP).
"""
