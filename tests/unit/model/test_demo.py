"""The demo model is the same on every machine and appears complete or not at all."""

import hashlib
import json
import threading
from pathlib import Path

import pytest

from components.model import demo
from components.model.demo import demo_model, write_demo_model
from components.model.train_tokenizer import train

# When one of these changes, raise FORMAT_VERSION in demo.py: old folders would go on being used.
HASHES = {
    "chat_template.jinja": "ad8290d1d116527b",
    "config.json": "65677aabe874459d",
    "generation_config.json": "2cc0db9a907256df",
    "model.safetensors": "3d1825cecc2267d1",
    "tokenizer.json": "8c87be011b9108c0",
    "tokenizer_config.json": "1161aa3b242d2013",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "penstock"


def test_files_are_the_same_everywhere(tmp_path: Path) -> None:
    """Each file has the committed hash."""
    write_demo_model(tmp_path)
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in tmp_path.iterdir()} == HASHES
    assert demo.FORMAT_VERSION == 1


def test_is_made_once(cache: Path) -> None:
    """The second call finds the first one's folder, and nothing else lies beside it."""
    folder = demo_model()
    made = (folder / "config.json").stat().st_mtime_ns
    assert demo_model() == folder
    assert (folder / "config.json").stat().st_mtime_ns == made
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_many_may_ask_at_once(cache: Path) -> None:
    """Whoever comes second uses the first one's folder; half-made ones are removed."""
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(demo_model())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(folders) == {cache / f"demo-{demo.FORMAT_VERSION}"}
    assert len(folders) == 6
    assert [path.name for path in cache.iterdir()] == [folders[0].name]
    assert {path.name for path in folders[0].iterdir()} == set(HASHES)


def test_failure_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk while writing leaves no half-made folder."""

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "write_demo_model", full)
    with pytest.raises(OSError, match="No space"):
        demo_model()
    assert list(cache.iterdir()) == []


def test_weights_fit_the_config(tmp_path: Path) -> None:
    """The weight file's header names every tensor once, without holes, in the config's shapes."""
    write_demo_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert len(header) == 3 + 9 * config["num_hidden_layers"]
    assert header["lm_head.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    ends = [0]
    for tensor in header.values():
        start, end = tensor["data_offsets"]
        assert start == ends[-1]
        ends.append(end)
    assert 8 + length + ends[-1] == len(data)


def test_tokenizer_comes_from_the_corpus() -> None:
    """Training on the shipped text gives the shipped tokenizer."""
    files = Path(demo.__file__).parent / "demo_files"
    trained = json.loads(train((files / "corpus.txt").read_text()).to_str())
    shipped = json.loads((files / "tokenizer.json").read_text())
    assert trained["model"]["vocab"] == shipped["model"]["vocab"]
    assert trained["model"]["merges"] == shipped["model"]["merges"]
