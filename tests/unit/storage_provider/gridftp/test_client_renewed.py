"""A kept session shows the certificate it was made with: once ours is renewed, it is not used again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from certs import ca, rollover
from certs.credential import Credential
from tests.conformance.gsiftp_rig import gsiftp_rig
from tests.helpers.pki import SiteHome

KEPT = ("se1", "dgis")


def test_a_session_with_a_certificate_of_a_ca_that_went(fresh_site: SiteHome, tmp_path: Path) -> None:
    home = fresh_site.home
    gateway, storage = (Credential(one.cert, one.key) for one in (fresh_site.gateway(), fresh_site.storage("se1")))
    with gsiftp_rig(fresh_site, tmp_path) as rig:
        rollover.start(home)
        rollover.switch(home)
        ca.renew_due(home, [storage])
        rig.disconnect()
        assert list(rig.channel.list()) == []  # a session between its new certificate and our old one, kept
        ca.renew_due(home, [gateway])
        with ca.SiteFiles(home).store.exclusive() as books:  # what other tests have issued stands in nobody's way
            for one in books.all():
                if one.profile != "ca" and not one.dn.endswith(tuple(f"/CN={name}" for name in KEPT)):
                    books.revoke(one.serial, at=datetime.now(UTC))
        rollover.finish(home, settled=timedelta(0))
        assert list(rig.channel.list()) == []
