"""The contract over SFTP with our own server, behind a faulty wire."""

import pytest

from tests.conformance.contract import *  # noqa: F403
from tests.conformance.contract import OpenRig
from tests.conformance.sftp_rig import sftp_rig


@pytest.fixture
def open_rig() -> OpenRig:
    return sftp_rig
