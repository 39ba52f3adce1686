"""What `penstock router` says where there is no router to ask."""

from pathlib import Path

import pytest

from components.launch.router_cli import why_none
from components.launch.state import StateFolder

GRAPH = (
    "{{model: demo, name: g, host: b, nats: 'nats://h:4222', "
    "components: {{processor: {{}}, {router}decode: {{engine: {{kind: sim}}}}}}}}"
)


@pytest.mark.parametrize(
    ("router", "says"),
    [
        ("", "graph g has no router; with `router: {}` among its components it gets one"),
        ("router: {replicas: 0}, ", "this machine's part of graph g runs no router (components.router.replicas is 0)"),
        ("router: {policy: luck}, ", "the settings of graph g cannot be read: "),
    ],
)
def test_whoever_asks_where_no_router_is_hears_what_to_do(
    router: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph without one, a machine with workers only, settings that make no sense."""
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path))
    folder = StateFolder("g")
    folder.make()
    folder.graph_file.write_text(GRAPH.format(router=router))
    assert why_none("g").startswith(says)
