"""The contract over SFTP with OpenSSH's server, behind a faulty wire."""

import pytest

from tests.conformance.contract import *  # noqa: F403
from tests.conformance.contract import OpenRig
from tests.conformance.sshd_rig import sshd_rig
from tests.helpers.sshd import NEEDS

pytestmark = [pytest.mark.peer, NEEDS]


@pytest.fixture
def open_rig() -> OpenRig:
    return sshd_rig
