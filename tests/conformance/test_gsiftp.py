"""The contract over GridFTP with our own server, behind faulty wires."""

import pytest

from tests.conformance.contract import *  # noqa: F403
from tests.conformance.contract import OpenRig
from tests.conformance.gsiftp_rig import gsiftp_rig


@pytest.fixture
def open_rig() -> OpenRig:
    return gsiftp_rig
