"""Engines: what turns token ids into token ids. The only package that knows vLLM and LMCache.

`protocol` is what a worker sees; `vllm` and `sim` are the two engines behind it.
"""
