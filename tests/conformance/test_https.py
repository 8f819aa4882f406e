"""The contract over HTTPS with mutual TLS, behind a faulty wire."""

import pytest

from tests.conformance.contract import *  # noqa: F403
from tests.conformance.contract import OpenRig
from tests.conformance.rigs import https_rig


@pytest.fixture
def open_rig() -> OpenRig:
    return https_rig
