"""What a rank's process is said to hold on a CPU."""

import mmap

import pytest

_BYTES = 64 * 2**20


def test_shared_memory_counts() -> None:
    """It is no file that the system could drop: what ranks share is held, as much as what each has for itself."""
    pytest.importorskip("torch")
    from components.worker_controller.device import Device

    device = Device(0, on_gpu=False)
    before = device.memory_bytes()
    with mmap.mmap(-1, _BYTES) as shared:
        shared.write(bytes(_BYTES))
        held = device.memory_bytes() - before
    assert held == pytest.approx(_BYTES, rel=0.2)
    assert device.memory_bytes() - before < _BYTES / 2
