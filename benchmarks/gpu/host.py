"""What engines run on here: GPUs or the CPU, a model, and the engine arguments that suit them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.engine.devices import visible_gpus, vllm_on_cpu

MODEL = "demo"
"""What every server calls the model."""

ON_GPU: dict[str, Any] = {
    "load_format": "dummy",
    "dtype": "bfloat16",
    "gpu_memory_utilization": 0.2,  # engines share GPUs: vLLM asks for this share to be free at the start, no more
    "compilation_config": {
        "mode": 0,  # nothing is compiled, a third of a cold start; decode steps run as CUDA graphs
        "cudagraph_mode": "FULL_DECODE_ONLY",
        "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128],
    },
    "max_num_seqs": 128,
    "max_num_batched_tokens": 8192,
    "max_model_len": 16384,
}
"""vLLM engine arguments of every engine on a GPU, but for the KV memory."""

ON_CPU: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 2048,
    "max_model_len": 4096,
}
"""The same for vLLM's CPU build."""


@dataclass(frozen=True)
class Host:
    """What engines run on.

    Attributes:
        gpus: as CUDA_VISIBLE_DEVICES names them; none: the engines compute on the CPU.
        model: the model folder.
        engine: vLLM engine arguments of every engine.
    """

    gpus: tuple[str, ...]
    model: Path
    engine: dict[str, Any]

    @property
    def on_cpu(self) -> bool:
        """Whether the engines compute on the CPU."""
        return not self.gpus

    def settings(self) -> list[str]:
        """Return what every part of a penstock graph is told."""
        engine = {"kind": "vllm", **self.engine}
        return [f"model={self.model}", f"served_model_name={MODEL}", f"decode.engine={json.dumps(engine)}"]

    def place(self, index: int, engines: int) -> dict[str, str]:
        """Return the variables that keep engine `index` of several on its device; one alone has all cores."""
        if self.gpus:
            return {"CUDA_VISIBLE_DEVICES": self.gpus[index]}
        if engines == 1:
            return {}
        cores = sorted(os.sched_getaffinity(0))
        return {"VLLM_CPU_OMP_THREADS_BIND": str(cores[index % len(cores)])}


def this_host(model: Path, gpus: int, kv_gib: float, extra: dict[str, Any]) -> Host:
    """Return this machine as a host of engines on `gpus` GPUs, or on the CPU when the installed vLLM is built for that.

    Args:
        model: the model folder.
        gpus: how many to use.
        kv_gib: of KV for an engine on a GPU.
        extra: engine arguments that go before the ones chosen here.

    Raises:
        SystemExit: there are fewer GPUs.
    """
    if vllm_on_cpu():
        return Host((), model, ON_CPU | extra)
    seen = visible_gpus()
    if len(seen) < gpus:
        raise SystemExit(f"{gpus} GPUs are wanted, nvidia-smi and CUDA_VISIBLE_DEVICES show {len(seen)}")
    return Host(seen[:gpus], model, ON_GPU | {"kv_cache_memory_bytes": int(kv_gib * 2**30)} | extra)
