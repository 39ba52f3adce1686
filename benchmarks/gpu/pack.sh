#!/usr/bin/env bash
# Packs what benchmarks/gpu/many.py needs beside vLLM on a GPU host without a network: the peers' routers and a slice of a trace.
# Usage: benchmarks/gpu/pack.sh OUTPUT_FOLDER [TRACE]      (a few minutes, most of it xz; PYTHON is an interpreter with pip)
#   OUTPUT_FOLDER/peers.tar.xz   about 33 MiB; on the host: mkdir -p /tmp/peers && tar -C /tmp/peers -xf peers.tar.xz, and --peers /tmp/peers
#   OUTPUT_FOLDER/slice.jsonl    2,000 requests of TRACE (Mooncake's format), whole conversations; --trace slice.jsonl
# The routers are Rust behind Python's stable ABI, so one pack serves every Python from 3.8 on; orjson, which they import, is packed
# for 3.11 and 3.12. What else they import (aiohttp, fastapi, requests, setproctitle, uvicorn) comes with vLLM.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd); out=$(realpath -m "${1:?output folder}"); trace=${2:-}; python=${PYTHON:-python3}
mkdir -p "$out"; site=$(mktemp -d); trap 'rm -rf "$site"' EXIT
platforms=(); for n in 35 34 31 28 27 26 24 17; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64)
fetch() {
  "$python" -m pip install -q --no-deps --no-compile --implementation cp --only-binary=:all: "${platforms[@]}" "$@"
}
fetch --python-version 3.12 --target "$site" vllm-router==0.1.17 sglang-router==0.3.2 orjson
fetch --python-version 3.11 --target "$site/other" orjson
cp "$site"/other/orjson/*.so "$site/orjson/"
rm -rf "$site/other" "$site/bin"
if command -v strip >/dev/null; then find "$site" -name '*_router_rs.abi3.so' -exec strip --strip-unneeded {} +; fi
tar -C "$site" -cf - . | xz -T0 -6 >"$out/peers.tar.xz"
if [ -n "$trace" ]; then PYTHONPATH=$root "$python" -m benchmarks.gpu.trace_slice "$trace" "$out/slice.jsonl"; fi
ls -l "$out"
