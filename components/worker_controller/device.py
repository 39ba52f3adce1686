"""A rank's device: its context, and how much of its memory this process holds.

On a GPU the rank's number is the device's index. On a CPU the device is the process itself, on the cores it was given.
"""

import ctypes
import gc
import time
from pathlib import Path

import torch

_AMX_SIZE = 256
_libc = ctypes.CDLL(None)


class Device:
    """The device of rank `rank`; the constructor makes its context."""

    def __init__(self, rank: int, *, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._rank = rank
        began = time.monotonic()
        if on_gpu:
            torch.cuda.set_device(rank)
        # A product makes the math library's handles, too. On a CPU with AMX, a large one in bfloat16 asks Linux for its
        # registers, which vLLM's own kernels forget to do (docs/log.md).
        half = torch.ones(_AMX_SIZE, _AMX_SIZE, dtype=torch.bfloat16, device=f"cuda:{rank}" if on_gpu else "cpu")
        float((half @ half)[0, 0])
        self.warming_s = (began, time.monotonic())

    def memory_bytes(self) -> int:
        """Return the memory in use: of the whole GPU, or of this process without files.

        On a CPU, pages shared with the warm server count, so that one that is only copied, because something was written to
        it, is no memory that somebody kept; so does memory shared among ranks, of which vLLM gives back none before the end.
        """
        if self._on_gpu:
            free, total = torch.cuda.mem_get_info(self._rank)
            return int(total - free)
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))

    def give_back(self) -> None:
        """Return what is free to the device and to the system."""
        gc.collect()
        if self._on_gpu:
            torch.cuda.synchronize(self._rank)
            torch.cuda.empty_cache()
            torch.cuda.ipc_collect()
        _libc.malloc_trim(0)
