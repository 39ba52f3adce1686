"""Where the commands start. Imports nothing heavy itself, so that Ctrl-C is quiet from the first moment on."""

import sys
from typing import NoReturn

_INTERRUPTED = 130


def penstock() -> NoReturn:
    """Run ``penstock``."""
    try:
        from components.launch.cli import main

        main()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    sys.exit(0)


def dynamo_llm() -> NoReturn:
    """Run ``dynamo-llm``."""
    try:
        from components.launch.dynamo_llm import main

        main()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    sys.exit(0)
