"""Fixtures for the tests of workflows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.contests import JudgeServer
from tests.servers import serving


@pytest.fixture
def judge_server() -> Iterator[Any]:
    pytest.importorskip("openai")
    with serving(JudgeServer, requests=[]) as handler:
        yield handler
