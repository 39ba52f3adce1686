"""Different tensor-parallel sizes: what LMCache shares between an engine on two GPUs and an engine on one.

    python -m benchmarks.gpu.tp --model /tmp/m8b --minutes 3 --out DIR

keys: one LMCache server, vLLM's own server with tensor_parallel_size 2 on GPUs 0 and 1, another with 1 on GPU 0. Each asks
for a prompt that the other one has stored, and for its own again after its prefix cache is emptied (the control: that must
be found). penstock: a graph whose prefill worker and decode worker both run on two GPUs, which they share; long prompts are
prefilled remotely, and the text is compared with that of the engine of the first piece. On a CPU a GPU is a process.
"""

import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.gpu import options
from benchmarks.gpu.budget import Budget, Journal, Piece, carry_out
from benchmarks.gpu.host import Host
from benchmarks.gpu.process import Command, started
from benchmarks.gpu.stand import penstock, vllm_server
from benchmarks.gpu.traffic import Writer
from benchmarks.servers import free_port
from components.engine.lmcache_config import connector_config, server_arguments
from components.graph.schema import LMCache

_CHUNK = 64
_TOKENS = 2000
_PROMPTS = 3
_STORED_S = 20.0
_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",  # no NVLink multicast, which not every host allows
    "LMCACHE_TRACK_USAGE": "false",
    "LMCACHE_DISABLE_BANNER": "1",
}


@dataclass(frozen=True)
class Engine:
    """One of vLLM's own servers, and what is asked of it."""

    url: str

    def ask(self, prompt: str, **fields: Any) -> str:
        """Return the greedy completion."""
        body = {"model": "demo", "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **fields}
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(json.load(response)["choices"][0]["text"])

    def loaded(self) -> float:
        """Return how many tokens it has loaded from LMCache so far."""
        return metric(self.url, "vllm:external_prefix_cache_hits_total")

    def forget(self) -> None:
        """Empty its prefix cache, not LMCache."""
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/reset_prefix_cache", b""), timeout=30):
            pass

    def ask_anew(self, prompt: str) -> tuple[str, int]:
        """Ask with an empty prefix cache; returns the text and how many tokens came from LMCache."""
        self.forget()
        before = self.loaded()
        text = self.ask(prompt)
        return text, int(self.loaded() - before)


def metric(url: str, name: str) -> float:
    """Return the sum of a metric's samples."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def keys(host: Host, logs: Path, start_s: float, texts: dict[str, str]) -> dict[str, Any]:
    """Return what each of the two engines finds of what it, or the other one, has stored; `texts` gets the larger one's."""
    writer = Writer(host.model)
    with engines(host, logs, start_s) as (two, one):
        found: dict[str, Any] = {}
        for name, stores, asks in (("TP 2 stores", two, one), ("TP 1 stores", one, two)):
            prompt = writer.text(name, _TOKENS)
            said = stores.ask(prompt)
            again, own = _until_stored(stores, prompt)
            alone = asks.ask(prompt, cache_salt="nobody has stored this")
            other, loaded = asks.ask_anew(prompt)
            found[name] = {
                "tokens": _TOKENS,
                "loaded by itself": own,
                "same text then": again == said,
                "loaded by the other": loaded,
                "the other's text is what it computes alone": other == alone,
                "both say the same": other == said,
            }
        texts |= {prompt: two.ask(prompt) for prompt in prompts(writer)}
    return found


def prompts(writer: Writer) -> list[str]:
    """Return what both pieces ask."""
    return [writer.text(f"penstock {number}", _TOKENS) for number in range(_PROMPTS)]


def _until_stored(engine: Engine, prompt: str) -> tuple[str, int]:
    """Ask until the prompt comes from LMCache: storing is asynchronous on a GPU."""
    end = time.monotonic() + _STORED_S
    while not (answer := engine.ask_anew(prompt))[1] and time.monotonic() < end:
        time.sleep(0.2)
    return answer


@contextmanager
def engines(host: Host, logs: Path, start_s: float) -> Iterator[tuple[Engine, Engine]]:
    """Run an LMCache server and two engines, of two ranks and of one."""
    settings = LMCache(port=free_port(), http_port=free_port(), chunk_tokens=_CHUNK, l1_gb=4 if host.gpus else 1)
    code = "import sys; from lmcache.cli.main import main; sys.argv[0] = 'lmcache'; main()"
    words = server_arguments(settings, "tp", on_cpu=host.on_cpu, can_silence_events=False)
    url = f"http://127.0.0.1:{settings.http_port}"
    cache = Command("lmcache", [sys.executable, "-c", code, *words], url, "/healthcheck", _ENVIRONMENT)
    with started([cache], logs, start_s):
        commands = [
            _server(replace(host, engine=host.engine | {"tensor_parallel_size": size}), size, settings) for size in (2, 1)
        ]
        with started(commands, logs, start_s):
            yield Engine(commands[0].url), Engine(commands[1].url)


def _server(host: Host, ranks: int, settings: LMCache) -> Command:
    shared = replace(host, engine=host.engine | {"kv_transfer_config": connector_config(settings)})
    command, _ = vllm_server(shared, 0, 1)
    place = {"CUDA_VISIBLE_DEVICES": ",".join(host.gpus[:ranks])} if host.gpus else _cores(host, ranks)
    environment = {**command.environment, **place, **_ENVIRONMENT}
    return replace(command, name=f"vllm-tp{ranks}", environment=environment)


def _cores(host: Host, ranks: int) -> dict[str, str]:
    places = [host.place(index, ranks + 1)["VLLM_CPU_OMP_THREADS_BIND"] for index in range(ranks)]
    return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(places)}


def through_penstock(host: Host, logs: Path, start_s: float, texts: dict[str, str]) -> dict[str, Any]:
    """Return what became of long prompts in a graph whose prefill and decode workers run on two devices each."""
    two = replace(host, engine=host.engine | {"tensor_parallel_size": 2})
    port = free_port()
    settings = [*two.settings(), f"http.port={port}", "decode.replicas=1", "prefill.replicas=1", "processor.replicas=1"]
    settings += [f"lmcache.port={free_port()}", f"lmcache.http_port={free_port()}", f"lmcache.chunk_tokens={_CHUNK}"]
    settings += ["decode.disagg.always=true", "decode.disagg.max_wait_s=30", "supervision.reuse_gpus=true"]
    command = penstock("penstock-tp2", "disagg.yaml", logs, settings, port, **_ENVIRONMENT)
    with started([command], logs, start_s) as (running,):
        engine = Engine(command.url)
        said = {prompt: engine.ask(prompt) for prompt in prompts(Writer(host.model))}
        return {
            "ready_s": round(running.ready_s, 1),
            "prompts": len(said),
            "texts": list(said.values()),
            "remote prefills": int(metric(command.url, "penstock_remote_prefill_load_seconds_count")),
            "tokens loaded": int(engine.loaded()),
            "same text as vLLM's own server": sum(said[prompt] == text for prompt, text in texts.items()) if texts else None,
        }


def main() -> None:
    """Measure, print, write."""
    chosen = options.parser(__doc__).parse_args()
    budget = Budget(chosen.minutes * 60)
    host = options.host(chosen, 2, 16)
    journal = Journal(options.results_file(chosen), options.facts(chosen, host))
    start_s, cost_s = chosen.start_s, 90.0
    texts: dict[str, str] = {}
    with options.log_folder(chosen) as logs:
        both = [
            Piece("keys", cost_s, partial(keys, host, logs, start_s, texts)),
            Piece("penstock", cost_s, partial(through_penstock, host, logs, start_s, texts)),
        ]
        carry_out([piece for piece in both if piece.name.startswith(chosen.only)], budget, journal)
    print(json.dumps({"results": journal.results, "not_measured": journal.not_measured}, indent=1))


if __name__ == "__main__":
    main()
