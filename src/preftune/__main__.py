"""The command line. Light modules only at import time: `preftune --help` must not wait for torch."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with the code of its outcome (see preftune.errors)."""
    from preftune.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
