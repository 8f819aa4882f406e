"""A server that is revoked while it is spoken to is left within seconds, as denied, over every channel."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from storage_provider.errors import Denied
from tests.conformance.gsiftp_rig import gsiftp_rig
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import Rig, https_rig, write
from tests.conformance.sftp_rig import sftp_rig
from tests.helpers.pki import SiteHome

DATA = random.Random(28).randbytes(12 * 1024 * 1024)
SPEC = spec_of(DATA)
SPEED = 400_000  # bytes per second: either way takes half a minute
WITHIN = 6.0
MakeRig = Callable[[SiteHome, Path], AbstractContextManager[Rig]]
RIGS: dict[str, MakeRig] = {"https": https_rig, "gsiftp": gsiftp_rig, "sftp": sftp_rig}


@pytest.fixture(params=list(RIGS))
def far(request: pytest.FixtureRequest, fresh_site: SiteHome, tmp_path: Path) -> Iterator[Rig]:
    with RIGS[request.param](fresh_site, tmp_path) as ready:
        yield ready


def test_a_get_from_a_server_that_is_revoked_ends(far: Rig, fresh_site: SiteHome, tmp_path: Path) -> None:
    far.channel.put(SPEC, write(tmp_path, DATA))
    far.slow(SPEED)
    with pytest.raises(Denied, match="revoked") as caught, far.channel.get(SPEC.key) as blocks:
        next(blocks)
        fresh_site.revoke(fresh_site.storage("se1"))
        began = time.monotonic()
        for _ in blocks:
            assert time.monotonic() - began < WITHIN
    assert not caught.value.permanent
    with pytest.raises(Denied, match="revoked"):
        far.channel.stat(SPEC.key)


def test_a_put_to_a_server_that_is_revoked_ends(far: Rig, fresh_site: SiteHome, tmp_path: Path) -> None:
    path = write(tmp_path, DATA)
    assert list(far.channel.list()) == []
    far.slow(SPEED)
    revoking = threading.Timer(1.0, fresh_site.revoke, [fresh_site.storage("se1")])
    revoking.start()
    began = time.monotonic()
    with pytest.raises(Denied, match="revoked"):
        far.channel.put(SPEC, path)
    assert time.monotonic() - began < 1.0 + WITHIN
    revoking.join()
