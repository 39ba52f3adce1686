"""The environment of a job worker: names and defaults as documented, mistakes by name, secrets out of sight."""

import pytest

from components.jobs.worker_settings import WorkerSettingsError, worker_settings

REQUIRED = {"CASOLA_WS_URL": "wss://queue.example/", "CASOLA_CONFIG_ID": "c", "VLLM_MODEL": "m"}


def test_defaults() -> None:
    """As the document has them."""
    settings = worker_settings({**REQUIRED, "CONTAINER_ID": "7"})
    assert (settings.ws_url, settings.queue_url) == ("wss://queue.example", "https://queue.example")
    assert (settings.worker_id, settings.queue_id) == ("vast-7", "vllm-queue")
    assert (settings.heartbeat_interval_s, settings.max_jobs, settings.lease_s, settings.renew_after_s) == (60, 1, 30, 24)
    assert (settings.grace_s, settings.engine_url, settings.startup_timeout_s) == (5, "http://127.0.0.1:8000", 120)
    assert (settings.api_url, settings.api_token, settings.engine_args) == (None, None, ())


def test_all_variables() -> None:
    """Each is honoured; the renewal follows the lease; the instance id is the worker's."""
    settings = worker_settings(
        {
            **REQUIRED,
            "CASOLA_API_URL": "https://api.example/",
            "CASOLA_API_TOKEN": "very-secret",
            "CASOLA_INSTANCE_ID": "one",
            "CASOLA_LEASE_SECONDS": "10",
            "CASOLA_SHUTDOWN_GRACE_PERIOD": "0",
            "VLLM_HOST": "h",
            "VLLM_PORT": "9",
            "VLLM_EXTRA_ARGS": "--a 1 --b 'c d'",
        }
    )
    assert (settings.worker_id, settings.renew_after_s, settings.grace_s) == ("one", 8, 0)
    assert (settings.engine_url, settings.engine_args) == ("http://h:9", ("--a", "1", "--b", "c d"))
    assert settings.api_url == "https://api.example"
    assert "very-secret" not in repr(settings)


@pytest.mark.parametrize("missing", REQUIRED)
def test_a_missing_variable_is_named(missing: str) -> None:
    """Unset, empty or blank."""
    for value in ({}, {missing: ""}, {missing: " "}):
        rest = {name: text for name, text in REQUIRED.items() if name != missing}
        with pytest.raises(WorkerSettingsError, match=f"{missing}: must be set"):
            worker_settings({**rest, **value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CASOLA_WS_URL", "https://queue.example"),
        ("CASOLA_API_URL", "api.example"),
        ("CASOLA_MAX_JOBS", "0"),
        ("CASOLA_MAX_JOBS", "many"),
        ("CASOLA_LEASE_SECONDS", "-1"),
        ("CASOLA_LEASE_SECONDS", "nan"),
        ("CASOLA_RENEW_LEASE_AFTER", "31"),
        ("CASOLA_SHUTDOWN_GRACE_PERIOD", "soon"),
        ("VLLM_PORT", "70000"),
        ("VLLM_EXTRA_ARGS", "--a 'b"),
    ],
)
def test_mistakes_are_named(name: str, value: str) -> None:
    """One line with the variable."""
    with pytest.raises(WorkerSettingsError, match=name):
        worker_settings({**REQUIRED, name: value})
