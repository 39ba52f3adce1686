"""A real GPU engine with `LMCacheConnectorV1` at a cache controller: it registers, and a prompt it served is found.

Needs a CUDA machine with vLLM and LMCache; takes the shipped example.yaml and the command of its head, on free ports.

    python -m benchmarks.cache_controller_gpu [--model demo] [--vllm-args "--load-format dummy"] [--out gpu.json]
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import show, write_json
from components.model.folder import model_folder
from tests.support.launched import OFFLINE, free_port

EXAMPLE = Path(__file__).parents[1] / "examples" / "lmcache" / "example.yaml"
PROMPT = [5 + (7 * index) % 700 for index in range(1000)]
START_TIMEOUT_S = 300.0
CHUNK = 256


def post(port: int, path: str, **body: Any) -> Any:
    """Call, and return the answer."""
    url = f"http://127.0.0.1:{port}{path}"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def until(what: Callable[[], Any], timeout_s: float, children: list[subprocess.Popen[bytes]]) -> tuple[Any, float]:
    """Wait until `what` returns something true; return it, and how long that took."""
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        if any(child.poll() is not None for child in children):
            sys.exit("a process has ended; what it wrote stands above")
        try:
            if found := what():
                return found, time.monotonic() - began
        except OSError:
            pass
        time.sleep(0.02)
    sys.exit("nothing came in time")


def main() -> None:
    """Run the scenario and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--vllm-args", default="--max-model-len 4096 --gpu-memory-utilization 0.3 --enforce-eager")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    ports = {name: free_port() for name in ("rest", "monitor", "reply", "heartbeat", "worker", "engine")}
    settings = yaml.safe_load(EXAMPLE.read_text())
    settings |= {"controller_pull_url": f"localhost:{ports['monitor']}", "lmcache_worker_ports": ports["worker"]}
    settings |= {"controller_reply_url": f"localhost:{ports['reply']}"}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = folder / "example.yaml"
        config.write_text(yaml.safe_dump(settings))
        environment = {**os.environ, **OFFLINE, "PENSTOCK_STATE_DIR": str(folder)}
        children: list[subprocess.Popen[bytes]] = []

        def start(words: list[str], **more: str) -> None:
            children.append(subprocess.Popen(words, env={**environment, **more}))
            stack.callback(children[-1].wait)
            stack.callback(children[-1].terminate)

        words = ["cache-controller", "--port", str(ports["rest"]), "--monitor-port", str(ports["monitor"])]
        words += ["--set", f"reply_port={ports['reply']}", "--set", f"heartbeat_port={ports['heartbeat']}"]
        start([sys.executable, "-m", "components.launch", *words])
        connector = json.dumps({"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"})
        model = model_folder(arguments.model)
        serve = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--served-model-name", "m"]
        serve += ["--port", str(ports["engine"]), "--kv-transfer-config", connector, "--enable-prompt-tokens-details"]
        began = time.monotonic()
        start([*serve, *shlex.split(arguments.vllm_args)], PYTHONHASHSEED="0", LMCACHE_CONFIG_FILE=str(config))

        instance = settings["lmcache_instance_id"]
        query = {"instance_id": instance, "worker_ids": [0]}
        workers, _ = until(
            lambda: post(ports["rest"], "/query_worker_info", **query)["worker_infos"], START_TIMEOUT_S, children
        )
        registered_s = time.monotonic() - began
        request = {"model": "m", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
        until(lambda: post(ports["engine"], "/v1/completions", **request), START_TIMEOUT_S, children)
        layout, found_s = until(lambda: post(ports["rest"], "/lookup", tokens=PROMPT)["layout_info"], 30.0, children)
        again = post(ports["engine"], "/v1/completions", **request)["usage"]
        cleared = post(ports["rest"], "/clear", instance_id=instance, location=layout[instance][0])
        results = {
            "worker": workers[0],
            "registered_s": round(registered_s, 1),
            "found_s": round(found_s, 3),
            "layout_info": layout,
            "usage of the repeated prompt": again,
            "cleared_tokens": cleared["num_tokens"],
            "ok": layout[instance][1] == len(PROMPT) // CHUNK * CHUNK,
        }
    show("LMCacheConnectorV1 on a GPU", ["what", "value"], [[name, str(value)] for name, value in results.items()])
    write_json(arguments.out, results)
    sys.exit(0 if results["ok"] else 1)


if __name__ == "__main__":
    main()
