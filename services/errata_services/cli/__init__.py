"""The command line. ``main`` is the only place where errors become lines and exit codes."""

import os
import sys

from errata.errors import ErrataError
from errata_services.cli.root import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; an error is one readable line on standard error and the exit code of its class."""
    try:
        app()
    except ErrataError as error:
        print(f"errata: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
