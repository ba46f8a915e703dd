"""Entry point of the command line. It imports no slow module, so that `preftune --help` is fast."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its exit code (see preftune.errors)."""
    from preftune.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
