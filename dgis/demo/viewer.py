"""A viewer that knows nothing of dgis: stock pynetdicom as SCU, and an SCP of its own to receive C-MOVE."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import PresentationContext, build_context, build_role

from dgis.demo.images import Image

VERIFICATION = "1.2.840.10008.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
CONTEXTS_PER_ASSOCIATION = 120  # of 128 (PS3.8 9.3.2.2: odd context ids 1..255)
PENDING = (0xFF00, 0xFF01)


@dataclass(slots=True)
class Received:
    """What arrived: the digest of each instance's data set, and how often it came."""

    digests: dict[str, str] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)

    def take(self, event: evt.Event) -> int:
        """Handle EVT_C_STORE: keep the digest of the data set exactly as it crossed the wire."""
        request = event.request
        assert isinstance(request, C_STORE) and isinstance(request.DataSet, BytesIO)
        uid = str(request.AffectedSOPInstanceUID)
        self.digests[uid] = hashlib.sha256(request.DataSet.getbuffer()).hexdigest()
        self.times[uid] += 1
        return 0x0000


class Viewer:
    """One viewer with a listener; every call opens and releases an association of its own."""

    def __init__(self, *, title: str, called: str, host: str, port: int) -> None:
        self._title, self._called, self._host, self._port = title, called, host, port
        pynetdicom_config.STORE_SEND_CHUNKED_DATASET = True  # send the file's bytes, not a re-encoded data set
        pynetdicom_config.LOG_HANDLER_LEVEL = "none"

    def _ae(self) -> AE:
        ae = AE(self._title)
        ae.maximum_pdu_size = 131072
        ae.connection_timeout = 10
        return ae

    def _associate(self, ae: AE, **options: Any) -> Any:
        assoc = ae.associate(self._host, self._port, ae_title=self._called, **options)
        if not assoc.is_established:
            raise ConnectionError(f"{self._called} at {self._host}:{self._port} did not accept the association")
        _keep_responses(assoc)
        return assoc

    def listen(self, port: int, images: Sequence[Image]) -> tuple[Any, Received]:
        """Start the receiving side of C-MOVE on ``port``; returns the server (``.shutdown()``) and what it received."""
        received, ae = Received(), self._ae()
        for sop_class, syntaxes in _syntaxes(images).items():
            ae.add_supported_context(sop_class, sorted(syntaxes))
        handler = (evt.EVT_C_STORE, received.take)
        return ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[handler]), received

    def echo(self) -> bool:
        """C-ECHO."""
        ae = self._ae()
        ae.add_requested_context(VERIFICATION)
        assoc = self._associate(ae)
        status = assoc.send_c_echo()
        assoc.release()
        return bool(status) and status.Status == 0x0000

    def store(self, images: Sequence[Image]) -> Iterator[tuple[Image, int]]:
        """C-STORE each image in its own transfer syntax; yields (image, status), 0xFFFF where no answer came."""
        for contexts, group in _groups(images):
            ae = self._ae()
            ae.requested_contexts = contexts
            assoc = self._associate(ae)
            for image in group:
                if not assoc.is_established:
                    raise ConnectionError("the association ended during the store")
                status = assoc.send_c_store(image.path)
                yield image, int(status.Status) if status else 0xFFFF
            assoc.release()

    def find(self, level: str, **keys: str) -> list[Dataset]:
        """C-FIND in the Study Root model; returns the matches. Raises ConnectionError on a failure status."""
        ae = self._ae()
        ae.add_requested_context(STUDY_ROOT_FIND)
        assoc = self._associate(ae)
        identifier = _identifier(level, **keys)
        matches: list[Dataset] = []
        last = 0xFFFF
        for status, match in assoc.send_c_find(identifier, STUDY_ROOT_FIND):
            last = int(status.Status) if status else 0xFFFF
            if last in PENDING and match is not None:
                matches.append(match)
        assoc.release()
        if last != 0x0000:
            raise ConnectionError(f"C-FIND at {level} level ended with status 0x{last:04X}")
        return matches

    def move(self, study_uids: Sequence[str], destination: str) -> tuple[int, int]:
        """C-MOVE whole studies; returns (completed, failed) sub-operations."""
        ae = self._ae()
        ae.add_requested_context(STUDY_ROOT_MOVE)
        assoc = self._associate(ae)
        counts = _last_counts(
            assoc.send_c_move(
                _identifier("STUDY", StudyInstanceUID=list(study_uids)),
                destination,
                STUDY_ROOT_MOVE,
            )
        )
        assoc.release()
        return counts

    def get(self, images: Sequence[Image]) -> tuple[tuple[int, int], Received]:
        """C-GET the studies of ``images``, an association for each group of contexts."""
        received = Received()
        completed = failed = 0
        for contexts, group in _groups(images):
            ae = self._ae()
            ae.requested_contexts = [*contexts, build_context(STUDY_ROOT_GET)]
            roles = [build_role(cx.abstract_syntax, scp_role=True) for cx in contexts if cx.abstract_syntax]
            assoc = self._associate(ae, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, received.take)])
            identifier = _identifier("STUDY", StudyInstanceUID=sorted({image.study_uid for image in group}))
            done = _last_counts(assoc.send_c_get(identifier, STUDY_ROOT_GET))
            completed, failed = completed + done[0], failed + done[1]
            assoc.release()
        return (completed, failed), received


def _keep_responses(assoc: Association) -> None:
    """Close a race of pynetdicom 3.0.4 as SCU: its reactor thread may take a response that the caller waits for, and
    then drops it ("Received unexpected C-STORE service message", upstream #435 and #875); here it is put back."""
    serve = assoc._serve_request

    def serve_request(msg: Any, context_id: int) -> None:
        if msg.is_valid_response:
            assoc.dimse.msg_queue.put((context_id, msg))
        else:
            serve(msg, context_id)

    assoc._serve_request = serve_request  # type: ignore[method-assign]


def _identifier(level: str, **keys: str | list[str]) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return ds


def _last_counts(responses: Iterator[tuple[Dataset, Dataset | None]]) -> tuple[int, int]:
    completed = failed = 0
    for status, _ in responses:
        if not status:
            raise ConnectionError("the association ended during the retrieve")
        completed = int(status.get("NumberOfCompletedSuboperations") or completed)
        failed = int(status.get("NumberOfFailedSuboperations") or failed)
    return completed, failed


def _syntaxes(images: Sequence[Image]) -> dict[str, set[str]]:
    table: dict[str, set[str]] = defaultdict(set)
    for image in images:
        table[image.sop_class_uid].add(image.transfer_syntax_uid)
    return table


def _groups(images: Sequence[Image]) -> Iterator[tuple[list[PresentationContext], list[Image]]]:
    """Split by what one association can propose: a context for each (SOP class, transfer syntax)."""
    pairs = sorted({(image.sop_class_uid, image.transfer_syntax_uid) for image in images})
    for start in range(0, len(pairs), CONTEXTS_PER_ASSOCIATION):
        chunk = pairs[start : start + CONTEXTS_PER_ASSOCIATION]
        contexts = [build_context(sop_class, syntax) for sop_class, syntax in chunk]
        yield contexts, [i for i in images if (i.sop_class_uid, i.transfer_syntax_uid) in set(chunk)]
