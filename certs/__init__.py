"""Identity, trust and rights: the floor that every dgis service stands on.

For: distinguished names, credentials, the site CA, trust anchors and CRLs, the gridmap, permits, TLS contexts and the
authenticated HTTPS harness (``certs.https``).
May import: cryptography, pyOpenSSL, PyJWT, pydantic, structlog, click, rich; in ``certs.https`` also requests, FastAPI
and uvicorn.
Must never know: DICOM, studies, objects, replicas, or any of the packages above it (catalog, storage_provider, dgis).
"""
