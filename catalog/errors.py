"""The error tree of the catalog, for its client and its service alike."""
from __future__ import annotations


class CatalogError(Exception):
    """Any failure of the catalog; `permanent` says whether the same call could succeed later."""

    permanent: bool = True

    def __init__(self, message: str, *, permanent: bool | None = None) -> None:
        super().__init__(message)
        if permanent is not None:
            self.permanent = permanent


class CatalogUnavailable(CatalogError):
    """The catalog did not answer (or said that it cannot answer now): try again later."""

    permanent = False


class CatalogRefused(CatalogError):
    """The catalog answered no: the same request will be refused again."""


class CatalogForbidden(CatalogRefused):
    """The VO's policy does not allow it; the text says why."""


class CatalogIncomplete(CatalogError):
    """A streamed answer stopped before its end marker: the rows so far are right, but there may be more."""

    permanent = False


class HeaderError(CatalogError):
    """The bytes cannot be read as a DICOM data set at all."""


class UnknownSubject(CatalogRefused):
    """The conflict, object or name asked about is not in this catalog."""


class UnsupportedQuery(CatalogRefused):
    """A query asks to match something that the catalog has no column for."""


class SchemaMismatch(CatalogError):
    """The database does not have the schema that this program needs; `dgis-catalog migrate` brings it there."""
