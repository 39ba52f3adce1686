"""What engines leave behind is removed; the worker controller whose ranks the tests of a file share."""

import os
from collections.abc import Iterator

import pytest

from components.engine.vllm_args import IPC_FOLDER
from components.telemetry.folders import socket_folder
from tests.support.controller import Controller, controller


@pytest.fixture(scope="session", autouse=True)
def _sockets() -> Iterator[None]:
    """Engines in the tests' own process make their sockets in one folder, which goes in the end."""
    with socket_folder() as folder:
        os.environ[IPC_FOLDER] = str(folder)
        yield


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """One worker controller for a whole file, started with the flags `CONTROLLER_FLAGS` of that file."""
    with controller(tmp_path_factory.mktemp("controller"), *request.module.CONTROLLER_FLAGS) as made:
        yield made


@pytest.fixture
def pool(shared: Controller) -> Iterator[Controller]:
    """The shared controller, all its ranks free before and after: whatever a test does, the next finds it whole."""
    shared.wait_free()
    yield shared
    shared.delete_all()
