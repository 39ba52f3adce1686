"""The generated pages are up to date, and every setting is documented."""

import subprocess
import sys


def test_generated_pages_are_up_to_date() -> None:
    """`make docs` would change nothing."""
    result = subprocess.run([sys.executable, "docs/generate.py", "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
