"""A model's name becomes a folder, or one clear line."""

from pathlib import Path

import pytest

from components.model.demo import demo_model
from components.model.folder import ModelError, model_folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def test_demo() -> None:
    """`demo` is the demo model."""
    assert model_folder("demo") == str(demo_model())


def test_folder() -> None:
    """A folder with a model is itself."""
    assert model_folder(str(demo_model())) == str(demo_model())


def test_folder_without_model(tmp_path: Path) -> None:
    """A folder without config.json is no model."""
    with pytest.raises(ModelError, match=r"has no config\.json"):
        model_folder(str(tmp_path))


@pytest.mark.parametrize("model", ["/no/such/folder", "./none", "~/none", "a/b/c"])
def test_no_such_folder(model: str) -> None:
    """What can only be a path is not looked up on the network."""
    with pytest.raises(ModelError, match="there is no folder"):
        model_folder(model)


def test_cached_hub_model(hub: Path) -> None:
    """A model id is found in the local cache."""
    repository = hub / "models--acme--tiny"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert model_folder("acme/tiny") == str(snapshot)


def test_unknown_hub_model(hub: Path) -> None:
    """Offline, a model id that is not in the cache says so in one line."""
    with pytest.raises(ModelError, match="acme/none is not on this machine, and HF_HUB_OFFLINE is set"):
        model_folder("acme/none")


def test_no_model_id() -> None:
    """What is neither a path nor an id is refused."""
    with pytest.raises(ModelError, match="neither a folder nor"):
        model_folder("what is this?")
