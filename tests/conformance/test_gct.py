"""The contract over GridFTP with a stock server (GCT), behind faulty wires."""

import pytest

from tests.conformance.contract import *  # noqa: F403
from tests.conformance.contract import OpenRig
from tests.conformance.gct_rig import gct_rig

pytestmark = pytest.mark.peer


@pytest.fixture
def open_rig() -> OpenRig:
    return gct_rig
