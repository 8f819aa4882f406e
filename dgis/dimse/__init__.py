"""The DIMSE edge: what viewers, modalities and archives on the local network talk to.

It turns C-ECHO, C-STORE, C-FIND, C-MOVE and C-GET into calls of the use cases (`dgis.ingest`, `dgis.search`,
`dgis.retrieve`) and their results into responses, and sends instances to move destinations.

May import: pynetdicom (in `runtime` only), pydicom, the use cases through the protocols of `services`, `certs.tls` (in
`secure` only; the rest knows a peer's certificate by its subject DN).
Must never know: HTTP, SQL, storage elements, where an instance lies. Nothing here logs a patient attribute, an
identifier or a data set.
"""
