"""Runs ``errata`` again and again, each time in a process of its own, without loading it anew: for tests that kill it.

Each line of standard input is ``[words, variables]`` in JSON; its answer is the exit code, as `subprocess` has it. What
the command says goes to standard error.
"""

import json
import os
import sys

from errata_services.cli import main


def run(words: list[str], variables: dict[str, str]) -> None:
    """In the child: never returns."""
    os.dup2(2, 1)
    os.environ.update(variables)
    sys.argv = ["errata", *words]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(*json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
