"""What holds for all tests."""

from pathlib import Path

import pytest

REAL_PARTS = [Path(__file__).parent / folder for folder in ("integration", "e2e")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a test with processes of its own a second try, as a busy machine may stall any; the summary names it."""
    for item in items:
        if any(folder in item.path.parents for folder in REAL_PARTS):
            item.add_marker(pytest.mark.flaky(reruns=1))
