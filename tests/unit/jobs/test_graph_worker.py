"""A job worker's settings, from the graph it belongs to."""

from typing import Any

import pytest

from components.graph.load import GraphError, graph_from_raw
from components.graph.schema import Graph
from components.jobs.graph_worker import settings_in


def _graph(**settings: Any) -> Graph:
    jobs = settings.pop("jobs", {})
    components = {"processor": {}, "decode": {"engine": {"kind": "sim"}}, "jobs": jobs}
    return graph_from_raw({"model": "demo", "name": "g", "components": components, **settings})


def test_a_worker_knows_its_queue_and_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses that mean everywhere become loopback; each door gets its key."""
    monkeypatch.setenv("PENSTOCK_API_KEY", "api,other")
    monkeypatch.setenv("PENSTOCK_WORKER_KEY", "work")
    jobs = {"http_host": "0.0.0.0", "http_port": 9, "config_id": "c", "lease_s": 10, "worker_capacity": 3}
    settings = settings_in(_graph(jobs=jobs, http={"host": "::", "port": 8}), "job-worker-0")
    assert (settings.ws_url, settings.engine_url) == ("ws://127.0.0.1:9", "http://[::1]:8")
    assert (settings.config_id, settings.max_jobs, settings.renew_after_s) == ("c", 3, 8)
    assert (settings.api_token, settings.engine_key, settings.worker_id) == ("work", "api", "g.job-worker-0")


@pytest.mark.parametrize(
    ("jobs", "reason"),
    [
        ({"replicas": 2}, "replicas: must be 0 or 1"),
        ({"http_port": 0}, "http_port"),
        ({"workers": -1}, "workers"),
        ({"lease_s": 0.5}, "lease_s"),
        ({"config_id": "a b"}, "config_id"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"lease": 1}, "lease"),
    ],
)
def test_mistakes_in_the_settings_are_named(jobs: dict[str, Any], reason: str) -> None:
    """With their path."""
    with pytest.raises(GraphError, match=rf"components\.jobs\S*{reason}"):
        _graph(jobs=jobs)
