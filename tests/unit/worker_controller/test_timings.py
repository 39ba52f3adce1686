"""Where the time went."""

from components.worker_controller.messages import Phase
from components.worker_controller.timings import Seen, create_timings, load_timings


def seen(rank: int | None, name: str, began: float, ended: float) -> Seen:
    """Return a phase that was seen."""
    return Seen(rank, Phase("e", name, began, ended))


ALL = [
    seen(None, "fork", 0.0, 1.0),
    seen(None, "arguments", 1.0, 2.0),
    seen(None, "core", 4.0, 4.5),
    seen(0, "weights", 4.5, 6.0),
    seen(1, "weights", 4.5, 7.0),
    seen(0, "kv_cache", 7.0, 7.5),
    seen(1, "kv_cache", 7.0, 7.25),
    seen(None, "api", 8.0, 9.0),
]


def test_phases_of_a_creation() -> None:
    """Of ranks side by side the slowest counts; what lies between the phases is told, too; the sum is the total."""
    timings = create_timings(ALL, 0.0, 9.5)
    assert timings == {
        "fork_s": 1.0,
        "arguments_s": 1.0,
        "config_s": 2.0,
        "weights_s": 2.5,
        "kv_cache_s": 0.5,
        "api_s": 1.0,
        "other_s": 1.5,
        "total_s": 9.5,
    }


def test_per_worker_and_summed() -> None:
    """Each rank's phases, and their sums."""
    timings = load_timings("e", [0, 1], ALL, 9.5)
    assert [worker.phases for worker in timings.workers] == [
        {"weights": 1.5, "kv_cache": 0.5},
        {"weights": 2.5, "kv_cache": 0.25},
    ]
    assert timings.summed == {"weights": 4.0, "kv_cache": 0.75}
    assert timings.workers[0].total_s == 2.0
