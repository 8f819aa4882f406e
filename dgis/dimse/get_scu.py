"""C-GET as SCU: what arrives on our own association goes, fragment by fragment, into Part 10 files of a folder.

The files are byte-exact: file meta information followed by the data set as it crossed the wire (PS3.10 7.1).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pydicom._uid_dict import UID_dictionary

from dgis import part10
from dgis.dimse import command as dimse
from dgis.dimse import status
from dgis.dimse.command import Answer, Command, Field
from dgis.dimse.messages import Sink
from dgis.dimse.negotiation import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, Context, Service, service_of
from dgis.dimse.runtime.association import GridAssociation
from dgis.dimse.runtime.entity import Proposal
from dgis.dimse.runtime.sockets import PeerGone
from dgis.dimse.scu import NobodyServed

MAX_STORAGE_CONTEXTS = 127  # of 128; one is for C-GET itself
_PLAIN_UID = re.compile(r"[0-9]+(\.[0-9]+)*\Z")
# Of these the peer's preference is taken where there is no room for a context each; lossless before lossy.
_SYNTAXES = (
    EXPLICIT_LE, IMPLICIT_LE, "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203", "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.103",
    "1.2.840.10008.1.2.1.99", EXPLICIT_BE,
)  # fmt: skip
# What an unknown study most likely consists of comes first; 127 of the standard's 180 classes fit one association.
_LIKELY = ("CT Image", "MR Image", "Enhanced", "Secondary Capture", "Computed Radiography", "Digital", "Ultrasound")


def safe_name(instance_uid: str) -> str:
    """Return a file name for an instance: its UID when that is only digits and dots, else a digest of it."""
    if len(instance_uid) <= 64 and _PLAIN_UID.match(instance_uid):
        return f"{instance_uid}.dcm"
    return f"{hashlib.sha256(instance_uid.encode('utf-8', 'replace')).hexdigest()[:40]}.dcm"


def storage_proposals(kinds: Iterable[tuple[str, str | None]]) -> list[Proposal]:
    """Propose storage contexts for (SOP class, transfer syntax or None for unknown); none known: the usual classes.

    A context for each syntax, so that the peer sends what it has stored; as many as fit one association.
    """
    known = list(dict.fromkeys(kinds))
    exact = [Proposal(uid, (syntax,), scp_role=True) for uid, syntax in known if syntax is not None]
    classes = list(dict.fromkeys(uid for uid, syntax in known if syntax is None)) if known else usual_classes()
    room = MAX_STORAGE_CONTEXTS - len(exact)
    if len(classes) * len(_SYNTAXES) <= room:
        exact += [Proposal(uid, (syntax,), scp_role=True) for uid in classes for syntax in _SYNTAXES]
    else:
        exact += [Proposal(uid, _SYNTAXES, scp_role=True) for uid in classes]
    return exact[:MAX_STORAGE_CONTEXTS]


def usual_classes() -> list[str]:
    """Return the storage SOP classes that the standard has not retired, likely ones first."""
    current = [uid for uid, entry in UID_dictionary.items() if not entry[3] and service_of(uid) is Service.STORE]
    return sorted(current, key=lambda uid: not UID_dictionary[uid][0].startswith(_LIKELY))


@dataclass(slots=True)
class Received:
    """What arrived: files written, and (UID, reason) of what could not be kept."""

    files: list[Path] = field(default_factory=list)
    size: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


class FolderUser(NobodyServed):
    """The user of a C-GET association: every C-STORE sub-operation becomes one file below `folder`."""

    def __init__(self, folder: Path, *, told: Callable[[Received], None]) -> None:
        """Write below `folder`, which exists; call `told` in the reading thread after each instance."""
        self.received = Received()
        self._folder = folder
        self._told = told
        self._numbers = itertools.count()

    def open_sink(self, association: GridAssociation, context: Context, command: Command) -> Sink | None:
        """Take the data set of a C-STORE-RQ; everything else as usual."""
        if command.field == Field.C_STORE:
            stage = self._folder / f".incoming-{os.getpid()}-{next(self._numbers)}"
            return _FileSink(association, context, command, stage, self._finished)
        return super().open_sink(association, context, command)

    def _finished(self, sink: _FileSink) -> None:
        if sink.problem:
            self.received.failures.append((sink.instance, sink.problem))
        else:
            self.received.files.append(sink.target)
            self.received.size += sink.size
        self._told(self.received)


class _FileSink:
    """One file, staged and renamed. What goes wrong here is answered, the rest of the data set read and dropped."""

    def __init__(
        self,
        association: GridAssociation,
        context: Context,
        command: Command,
        stage: Path,
        finished: Callable[[_FileSink], None],
    ) -> None:
        self._association, self._context, self._command = association, context, command
        self._stage, self._finished = stage, finished
        self._file: BinaryIO | None = None
        self._answer = Answer(status.SUCCESS)
        self.instance = command.instance
        self.target = stage.with_name(safe_name(self.instance))
        self.size = 0
        self.problem = ""
        try:
            meta = part10.file_meta(command.sop_class, self.instance, context.transfer_syntax)
            self._file = stage.open("xb")
            self._file.write(meta)
        except part10.Part10Error as error:
            self._fail(Answer(status.STORE_CANNOT_UNDERSTAND, "UIDs that no file can hold"), str(error))
        except OSError as error:
            self._fail(
                Answer(status.STORE_OUT_OF_RESOURCES, "cannot be written"), error.strerror or "cannot be written"
            )

    def write(self, piece: memoryview) -> None:
        if self._file is not None:
            try:
                self._file.write(piece)
                self.size += len(piece)
            except OSError as error:
                self._fail(Answer(status.STORE_OUT_OF_RESOURCES, "no room"), error.strerror or "cannot be written")

    def close(self) -> None:
        if self._file is not None:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._stage.rename(self.target)
            except OSError as error:
                self._fail(Answer(status.STORE_OUT_OF_RESOURCES, "no room"), error.strerror or "cannot be written")
        self._finished(self)
        with contextlib.suppress(PeerGone):
            self._association.send_message(self._context.id, dimse.response(self._command, self._answer))

    def abort(self) -> None:
        self._drop()

    def _fail(self, answer: Answer, problem: str) -> None:
        self._answer, self.problem = answer, problem
        self._drop()

    def _drop(self) -> None:
        stream, self._file = self._file, None
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
            self._stage.unlink(missing_ok=True)
