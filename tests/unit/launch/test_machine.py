"""Facts about the machine: GPUs as nvidia-smi lists them, and who holds a port."""

import os
import socket
from pathlib import Path

import pytest

from components.engine.devices import visible_gpus
from components.launch.devices import PlanError
from components.launch.machine import free_port, port_holder


@pytest.fixture
def four_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program in the place of nvidia-smi that lists four GPUs, as the real one prints them."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n3\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("allowed", "visible"),
    [
        (None, ("0", "1", "2", "3")),
        ("2,0", ("2", "0")),
        ("1, 9", ("1",)),
        ("GPU-8932f937", ("GPU-8932f937",)),
        ("", ()),
        ("-1", ()),
    ],
)
@pytest.mark.usefixtures("four_gpus")
def test_cuda_visible_devices_is_honoured(
    monkeypatch: pytest.MonkeyPatch, allowed: str | None, visible: tuple[str, ...]
) -> None:
    """Only listed and allowed GPUs count, in the order in which they are allowed."""
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert visible_gpus() == visible


def test_without_nvidia_smi_there_are_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the program has no GPUs, whatever CUDA_VISIBLE_DEVICES says."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert visible_gpus() == ()


def test_the_holder_of_a_port_is_named() -> None:
    """A listener is named by pid and command, also one that would share its port; a free port has no holder."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        held = port_holder("127.0.0.1", port)
        assert held
        assert held.startswith(f"pid {os.getpid()} (")
    assert port_holder("127.0.0.1", port) is None


def test_an_address_of_another_machine() -> None:
    """What cannot be bound is refused with the setting at fault."""
    with pytest.raises(PlanError, match=r"http\.port: cannot listen on 192\.0\.2\.1:8181: Cannot assign"):
        port_holder("192.0.2.1", 8181)
    with pytest.raises(PlanError, match=r"http\.host: nowhere\.invalid is no address"):
        port_holder("nowhere.invalid", 8181)


def test_a_free_port_can_be_had() -> None:
    """On an address of this machine; a foreign one is refused with its setting."""
    port = free_port("127.0.0.1", "lmcache.host")
    assert port_holder("127.0.0.1", port) is None
    with pytest.raises(PlanError, match=r"lmcache\.host: cannot listen on 203\.0\.113\.1"):
        free_port("203.0.113.1", "lmcache.host")
