"""Cores of ranks, and ports of engines."""

import socket

import pytest

from components.graph.schema import ControllerSettings
from components.worker_controller.placement import cores_of, rank_environments
from components.worker_controller.ports import NoPortError, Ports


@pytest.mark.parametrize(
    ("ranks", "cpus", "cores"),
    [
        (1, [0], [[0]]),
        (1, [0, 1], [[0]]),
        (2, [0, 1], [[0], [1]]),
        (2, [3, 4, 5, 6, 7], [[3, 4], [5, 6]]),
        (3, [0, 1], [[0], [1], [0]]),
        (1, [0, 1, 2, 3], [[0, 1, 2]]),
    ],
)
def test_cores(ranks: int, cpus: list[int], cores: list[list[int]]) -> None:
    """Equal shares, one core for the engines' other processes where there is one, sharing where there are too few."""
    assert [cores_of(rank, ranks, cpus) for rank in range(ranks)] == cores


def test_a_rank_for_each_gpu() -> None:
    """Unless another number is asked for."""
    assert len(rank_environments(ControllerSettings(), {}, ["0", "1", "2"], on_cpu=False)) == 3
    assert len(rank_environments(ControllerSettings(workers=2), {}, ["0", "1", "2"], on_cpu=False)) == 2
    assert len(rank_environments(ControllerSettings(workers=5), {}, [], on_cpu=True)) == 5


def test_compiled_models_are_kept_by_gpu() -> None:
    """The first GPU shares vLLM's own cache, the others have theirs; Triton's kernels are one for all, and settable."""
    variables = {"HOME": "/h", "A": "b"}
    first, second = rank_environments(ControllerSettings(workers=2), variables, ["0", "1"], on_cpu=False)
    assert first == {**variables, "VLLM_CACHE_ROOT": "/h/.cache/vllm", "TRITON_CACHE_DIR": "/h/.triton/cache"}
    assert second == {**first, "VLLM_CACHE_ROOT": "/h/.cache/vllm/penstock-gpu-1"}
    chosen = {"HOME": "/h", "VLLM_CACHE_ROOT": "/c", "TRITON_CACHE_DIR": "/t", "TRITON_HOME": "/x"}
    assert rank_environments(ControllerSettings(workers=1), chosen, ["0"], on_cpu=False) == [chosen]


def test_ports() -> None:
    """The lowest free port; one that somebody has is skipped; one given back is taken again; none left is an error."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        ports = Ports("127.0.0.1", port, port)
        with pytest.raises(NoPortError):
            ports.take()
    assert ports.take() == port
    with pytest.raises(NoPortError):
        ports.take()
    ports.give_back(port)
    with pytest.raises(NoPortError):
        ports.take(frozenset({port}))
    assert ports.take() == port
