"""Where penstock's programs keep state and logs on this machine."""

import os
from pathlib import Path


def state_root() -> Path:
    """Return ``$PENSTOCK_STATE_DIR``, else ``$XDG_STATE_HOME/penstock``, else ``~/.local/state/penstock``."""
    if chosen := os.environ.get("PENSTOCK_STATE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "penstock"
