"""The launcher: the exit code and the message of the first cause. The ranks are processes of a few lines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from preftune import stop
from preftune.errors import ConfigError
from preftune.ranks import launch
from preftune.ranks.launch import Nodes

SLEEP = "import time; time.sleep(60)"
WAIT_FOR_TERM = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print(); signal.pause()"


def wait_for(*programs: str) -> int:
    """Run one process per program, and return what the launcher returns. No process remains."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", program]) for program in programs]
    try:
        return launch._wait(processes, 0, len(programs))
    finally:
        assert all(process.poll() is not None for process in processes)


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE_S", 1.0)
    monkeypatch.setattr(launch, "SUSPENDED_S", 0.3)


def test_the_exit_code_of_all_ranks_is_kept() -> None:
    assert wait_for("", "") == 0
    assert wait_for("raise SystemExit(75)", "raise SystemExit(75)") == 75


def test_the_code_of_the_rank_that_failed_first_counts(capfd: pytest.CaptureFixture[str]) -> None:
    # rank 1 reports a data error; rank 0 only lost its connection, and rank 2 hangs
    assert wait_for("import time; time.sleep(0.5); raise SystemExit(8)", "raise SystemExit(3)", SLEEP) == 3
    assert capfd.readouterr().err == ""  # the rank has printed its error


def test_a_rank_that_was_killed_is_named_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        wait_for("import time; time.sleep(0.3); raise SystemExit(8)", "import os; os.kill(os.getpid(), 9)", SLEEP) == 8
    )
    message = capfd.readouterr().err
    assert message.count("rank 1 was killed by SIGKILL") == 1
    assert "rerun the same command to resume" in message


def test_a_rank_that_is_suspended_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    program = f"import os, signal; os.kill(os.getpid(), {int(signal.SIGSTOP)})"
    assert wait_for(SLEEP, program) == 8
    assert "rank 1 was suspended" in capfd.readouterr().err


def test_a_request_to_stop_is_forwarded_once_to_every_rank() -> None:
    processes = [
        subprocess.Popen([sys.executable, "-S", "-c", WAIT_FOR_TERM], stdout=subprocess.PIPE) for _ in range(2)
    ]
    with stop.guard(lambda text: None), stop.between_checks(lambda text: None):
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # its handler is installed
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)  # Python runs the handler
        assert launch._wait(processes, 0, 2) == 75
    for process in processes:
        assert process.stdout is not None
        process.stdout.close()


NOTHING_BEGUN = """
import os, sys, time
from preftune import stop
from preftune.cli.outcome import interruption
with stop.guard():
    with getattr(stop, sys.argv[1])():
        try:
            print(flush=True)
            time.sleep(60)
        except stop.StopRequest:
            os._exit(interruption().code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no descriptor can be passed on")
@pytest.mark.parametrize("modes", [("at_once", "at_once"), ("at_once", "interruptible"), ("interruptible",) * 2, ()])
def test_a_stop_before_the_ranks_have_joined_is_reported_once(
    modes: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    with stop.guard(lambda text: None), stop.between_checks(lambda text: None), stop.one_tells() as fd:
        programs = [["-c", NOTHING_BEGUN, mode] for mode in modes] or [["-S", "-c", f"print(flush=True);{SLEEP}"]] * 2
        processes = [
            subprocess.Popen([sys.executable, *program], stdout=subprocess.PIPE, pass_fds=[fd]) for program in programs
        ]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # its handler is installed, if it installs one
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)  # Python runs the handler
        assert launch._wait(processes, 0, 2) == 75
    for process in processes:
        assert process.stdout is not None
        process.stdout.close()
    assert capfd.readouterr().err.count("stopped") == 1
    assert stop.tells()


def test_several_nodes_need_an_address() -> None:
    with pytest.raises(ConfigError, match="--address"):
        launch.launch(["dpo", "c.yaml"], 2, Nodes(2, 0))
    with pytest.raises(ConfigError, match="HOST:PORT"):
        launch.launch(["dpo", "c.yaml"], 2, Nodes(2, 0, "host"))
    with pytest.raises(ConfigError, match="numbered from 0"):
        launch.launch(["dpo", "c.yaml"], 2, Nodes(2, 2, "host:1"))


def test_a_command_that_cannot_run_on_several_ranks_starts_no_process() -> None:
    with pytest.raises(ConfigError, match="cannot run on several ranks"):
        launch.launch(["demo"], 2, Nodes())
