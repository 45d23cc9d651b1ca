"""``python -m errata_services.dev FOLDER``: the process behind ``errata dev up --detach``."""

import sys
from pathlib import Path

from errata.errors import ErrataError
from errata_services.dev.workplace import up


def main() -> int:
    try:
        up(Path(sys.argv[1]), announce=lambda _: None, say=lambda line: print(line, file=sys.stderr, flush=True))
    except ErrataError as error:
        print(f"errata: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
