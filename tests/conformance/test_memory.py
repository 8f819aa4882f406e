"""The contract over the double in memory."""

import pytest

from tests.conformance.contract import *  # noqa: F403
from tests.conformance.contract import OpenRig
from tests.conformance.rigs import memory_rig


@pytest.fixture
def open_rig() -> OpenRig:
    return memory_rig
