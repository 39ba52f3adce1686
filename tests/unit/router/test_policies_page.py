"""docs/policies.md is true: its example is a policy, its test passes, and the settings know every policy."""

import re
import typing
from pathlib import Path

from components.graph.schema import RouterSettings
from components.router.policies import POLICIES

PAGE = Path(__file__).parents[3] / "docs" / "policies.md"


def test_the_example_works_as_it_stands() -> None:
    """Its code and its test, copied from the page."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code) == 2
    names: dict[str, object] = {"__name__": "lanes"}
    for block in code:
        exec(compile(block, str(PAGE), "exec"), names)
    assert "went" in names


def test_the_settings_name_every_policy() -> None:
    """A policy that no graph can name, or a name without a policy, is a mistake."""
    assert set(typing.get_args(RouterSettings.__annotations__["policy"])) == set(POLICIES)
