"""Imports, when it is imported itself, everything that a vLLM process needs: front end, engine core, and worker.

Most modules come along with the first few. The others were found by comparing what a finished engine core, worker and front
end had imported with what the server had. One that a vLLM version does not have is left out.

vLLM looks at a model's class before it loads it, in a fresh process that imports everything once more, whenever it sees the
class for the first time on a host: 10 to 18 s of an engine's start. Classes that are registered as such, through vLLM's
interface for other people's models, are looked at where they are.
"""

import contextlib
import importlib

import torch
from vllm import ModelRegistry
from vllm.platforms import current_platform

_EVERYWHERE = (
    "components.engine.vllm",
    "components.engine.vllm_compat",
    "components.engine.vllm_parsers",
    "setproctitle",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.lora.resolver",
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
    "vllm.plugins.lora_resolvers.filesystem_resolver",
    "vllm.plugins.lora_resolvers.hf_hub_resolver",
    "vllm.renderers.hf",
    "vllm.tokenizers.hf",
    "vllm.v1.core.sched.async_scheduler",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
)
_ON_CPU = ("vllm.triton_utils.dispatcher", "vllm.v1.attention.backends.cpu_attn", "vllm.v1.worker.cpu_worker")
_ON_GPU = (
    "vllm.compilation.backends",
    "vllm.compilation.caching",
    "vllm.compilation.piecewise_backend",
    "vllm.v1.attention.backends.flash_attn",
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.v1.worker.gpu_worker",
)
# Dense models only: what mixtures of experts import on a GPU may touch it, and loading those takes minutes anyway.
_ARCHITECTURES = (
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "OPTForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)


for name in (*_EVERYWHERE, *(_ON_CPU if current_platform.is_cpu() else _ON_GPU)):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
for name in _ARCHITECTURES:
    with contextlib.suppress(ImportError, KeyError):
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
# Triton files what it compiles by a checksum of all of Triton, which it makes once a process.
if not current_platform.is_cpu():
    with contextlib.suppress(Exception):
        importlib.import_module("triton.runtime.cache").triton_key()
if torch.cuda.is_initialized():
    raise ImportError(
        "importing vLLM initialized CUDA, so no forked process could use it; set supervision.warm_start: false"
    )
