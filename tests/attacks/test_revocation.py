"""Revoked while it is served; each docstring is a row "attack -> result" of docs/security.md."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

import pytest
from pynetdicom import AE, evt

from bench.revocation import CHANNELS, DICOM_TLS, KEPT_ALIVE, Ground, revoked_among
from certs import ca
from dgis.demo.viewer import Viewer
from tests.helpers.dicomfiles import images, synth
from tests.helpers.grid import Grid, free_port
from tests.unit.dgis.dimse.raw import associate, read_pdu

WITHIN = 6.0  # a busy machine; bench/revocation.py has what it is on a quiet one
A_ABORT = 0x07


@pytest.fixture(scope="module")
def ground(attacked: Grid) -> Ground:
    return Ground(attacked, size=16 * 1024 * 1024)


@pytest.mark.parametrize("channel", CHANNELS)
def test_in_mid_transfer(ground: Ground, channel: str) -> None:
    """Revoked in the middle of a transfer over https, gsiftp, sftp -> cut within seconds; others go on."""
    sample = revoked_among(ground, channel, others=1, seconds=0.5)
    assert sample.served_on < WITHIN
    assert sample.others_failed == 0 and sample.longest_gap < WITHIN and sample.speed_after > 0


def test_on_a_connection_that_is_kept(ground: Ground) -> None:
    """Revoked on a kept-alive connection -> its next request gets 403 and the end; others' connections stay."""
    sample = revoked_among(ground, KEPT_ALIVE, others=1, seconds=0.5)
    assert sample.served_on < WITHIN and "revoked" in sample.said
    assert sample.others_failed == 0 and sample.speed_after > 0


def test_on_an_association(ground: Ground) -> None:
    """Revoked on a DICOM TLS association that is in use -> A-ABORT within seconds; others' associations stay."""
    sample = revoked_among(ground, DICOM_TLS, others=1, seconds=0.5)
    assert sample.served_on < WITHIN
    assert sample.others_failed == 0 and sample.speed_after > 0


@pytest.mark.parametrize("begun", [b"", b"\x04\x00\x00\x00\x40\x00"], ids=["idle", "in mid-message"])
def test_on_a_silent_association(ground: Ground, begun: bytes) -> None:
    """Revoked on a DICOM TLS association that is silent, also within a message -> A-ABORT within seconds."""
    credential, place = ground.credential(f"silent-{len(begun)}"), ground.grid.ready["dimse_tls"]
    context = ssl.create_default_context(cafile=ground.grid.ready["client"]["ca"])
    context.load_cert_chain(credential.cert, credential.key)
    plain = socket.create_connection((place["host"], place["port"]), timeout=10)
    with context.wrap_socket(plain, server_hostname=place["host"]) as sock:
        associate(sock, [("1.2.840.10008.1.1", "1.2.840.10008.1.2")])
        sock.sendall(begun)
        ca.revoke(ground.grid.home, credential.cert)
        began = time.monotonic()
        assert read_pdu(sock)[0] == A_ABORT
        assert time.monotonic() - began < WITHIN
    log = (ground.grid.home / "log" / "dgis.log").read_text(errors="replace")
    assert "an association was cut" in log and f"silent-{len(begun)} is revoked" in log


def test_a_destination(ground: Ground, tmp_path: Path) -> None:
    """A destination of C-MOVE over DICOM TLS, revoked in the middle -> gets no more; the rest is reported as failed."""
    grid, credential, port = ground.grid, ground.credential("destination"), free_port()
    size = ("--studies", "1", "--series", "1", "--instances", "30", "--rows", "16", "--cols", "16")
    sent = images(synth(tmp_path / "images", *size))
    mover = Viewer(title="MOVER", called="DGIS", host="127.0.0.1", port=grid.port)
    assert {status for _, status in mover.store(sent)} == {0x0000}
    named = ("--host", "127.0.0.1", "--port", str(port), "--tls", "--certificate", str(credential.dn()))
    grid.cli("ae", "add", "REVOKED", *named)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=grid.ready["client"]["ca"])
    context.load_cert_chain(credential.cert, credential.key)
    came: list[str] = []

    def slowly(event: evt.Event) -> int:
        came.append(str(event.request.AffectedSOPInstanceUID))
        if len(came) == 3:
            ca.revoke(grid.home, credential.cert)
        time.sleep(0.3)
        return 0x0000

    ae = AE("REVOKED")
    ae.add_supported_context(sent[0].sop_class_uid, sent[0].transfer_syntax_uid)
    handlers = [(evt.EVT_C_STORE, slowly)]
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers, ssl_context=context)
    try:
        completed, failed = mover.move([sent[0].study_uid], "REVOKED")
    finally:
        server.shutdown()
    assert 3 <= len(came) < 15 and completed <= len(came) and completed + failed == len(sent)
