"""The demo model's tokenizer, loaded once."""

import pytest

from components.model.folder import model_folder
from components.model.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The demo model's tokenizer."""
    return Tokenizer(model_folder("demo"))
