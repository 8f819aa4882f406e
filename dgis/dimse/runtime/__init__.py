"""pynetdicom made event-driven: the only room that imports it and the only one that touches its private names.

Two threads serve an association. The reading thread (`upper`, pynetdicom's DUL provider) blocks in poll() on the socket
and a wake-up descriptor, runs pynetdicom's own state machine for every PDU but P-DATA, and hands P-DATA straight to the
message assembler. The association's thread (`association`) waits for whole requests and runs the long operations.
Whoever sends P-DATA writes to the socket itself, under one lock, so nothing piles up in a queue. Connections that have
not yet sent their A-ASSOCIATE-RQ wait in the `lobby` without a thread and without an association slot.

The reading thread is the lane of C-STORE: fragments lie in the receive buffer until they are digested and written, one
thread does all of an object up to its Success, upstream's classes see none of it. A second stack beside this one, for
storing alone, was rejected: without the spool this one costs about what DCMTK's storescp does (bench/lane.py), and
there would be two readings of PS3.8 to keep in step.

`tests/unit/dgis/dimse/test_upstream.py` fails when a private name used here changes upstream.
Must never know: storage, queries, the catalog; it serves an `AssociationUser`.
"""
