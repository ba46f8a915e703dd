"""Entry point of the command line. It imports no slow module, so that `preftune --help` is fast."""

from __future__ import annotations

import gc
import os
import sys
import threading
from typing import NoReturn

from preftune import stop

EXIT_S = 10.0  # after which the process ends even if threads of libraries are still busy


def main() -> None:
    """Run the command line and exit with its exit code (see preftune.errors)."""
    gc.set_threshold(50_000, 20, 100)  # else imports search their new objects for garbage, which takes 0.4 s
    with stop.guard():
        with stop.at_once():
            from preftune.cli.main import run
        code = run(sys.argv[1:])
        flush()
        if stop.requested():
            os._exit(code)  # threads may still wait for a server
        stop.answer_after_guard(lambda *_: os._exit(code))  # the command has finished; only the interpreter has not
    leave(code)


def flush() -> None:
    """Write what is buffered for stdout and stderr."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, or None
            continue


def leave(code: int) -> NoReturn:
    """Exit with `code`, after EXIT_S seconds at the latest."""
    timer = threading.Timer(EXIT_S, os._exit, [code])
    timer.daemon = True
    timer.start()
    gc.freeze()  # else the interpreter searches all objects of torch and transformers for garbage, which takes 0.5 s
    sys.exit(code)


if __name__ == "__main__":
    main()
