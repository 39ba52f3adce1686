"""The worker controller guide's full workflow: against a running controller, or one that this test starts.

``PENSTOCK_CONTROLLER=http://localhost:8000 python tests/test_main_api.py`` runs it against yours.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

MODEL = os.environ.get("PENSTOCK_MODEL", "demo")


@pytest.fixture
def base(tmp_path: Path) -> Iterator[str]:
    """The controller's address."""
    if chosen := os.environ.get("PENSTOCK_CONTROLLER"):
        yield chosen
        return
    pytest.importorskip("vllm")
    from tests.support.controller import controller

    with controller(tmp_path) as made:
        yield made.url


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_full_workflow(base: str) -> None:
    """Health, create, list, status, completion, chat, workers, delete; each as the guide shows it."""
    with httpx.Client(timeout=120) as requests:
        assert requests.get(f"{base}/health").json()["status"] == "healthy"
        assert requests.get(f"{base}/").json()["status"] == "running"
        assert "/engines" in requests.get(f"{base}/openapi.json").json()["paths"]
        assert "worker controller" in requests.get(f"{base}/docs").text

        response = requests.post(
            f"{base}/engines",
            json={"engine_uuid": "test-001", "model": MODEL, "dtype": "float16", "gpu_memory_utilization": 0.9},
        )
        assert response.status_code == 200, response.text
        engine = response.json()
        assert engine["status"] == "created"
        api_url = engine["api_url"]

        again = requests.post(f"{base}/engines", json={"engine_uuid": "test-001", "model": MODEL})
        assert again.status_code == 409
        listed = requests.get(f"{base}/engines").json()
        assert [each["engine_uuid"] for each in listed["engines"]] == ["test-001"]
        assert requests.get(f"{base}/engines/test-001").json()["state"] == "running"
        assert requests.get(f"{base}/engines/test-001/load_timings").json()["total_s"] > 0
        workers = requests.get(f"{base}/workers").json()["workers"]
        assert [each["assigned_to"] for each in workers][: len(engine["assigned_ranks"])] == ["test-001"]

        assert requests.get(f"{api_url}/health").status_code == 200
        assert requests.get(f"{api_url}/v1/models").json()["data"][0]["id"] == MODEL
        response = requests.post(
            f"{api_url}/v1/completions", json={"model": MODEL, "prompt": "San Francisco is a", "max_tokens": 20}
        )
        assert "text" in response.json()["choices"][0]
        response = requests.post(
            f"{api_url}/v1/chat/completions",
            json={"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 10},
        )
        assert response.json()["choices"][0]["message"]["role"] == "assistant"

        deleted = requests.delete(f"{base}/engines/test-001").json()
        assert deleted["released_ranks"] == engine["assigned_ranks"]
        assert deleted["released_port"] == engine["port"]
        assert requests.get(f"{base}/engines/test-001").status_code == 404
        workers = requests.get(f"{base}/workers").json()["workers"]
        assert all(each["status"] == "free" for each in workers)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
