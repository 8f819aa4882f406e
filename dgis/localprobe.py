"""Ask the services of a local grid whether they answer, as an operator would."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from catalog.client import CatalogClient
from catalog.errors import CatalogError
from catalog.wire import Site, StorageElement
from certs.config import IdentityConfig
from certs.dn import DN
from certs.errors import Answered, ServiceError
from certs.https.session import GridSession
from dgis import localgrid
from dgis.localgrid import GridHomeError, GridOptions, Paths

PAUSE = 0.05


def operator_identity(paths: Paths) -> IdentityConfig:
    """The operator's credential of a local grid."""
    credential = paths.credential("operator")
    return IdentityConfig(cert=credential.cert, key=credential.key, trust=paths.trust, gridmap=paths.gridmap)


def _element(ports: Mapping[str, int], name: str) -> StorageElement:
    return StorageElement(name=name, site=localgrid.SITE, doors=localgrid.doors(ports, name), state="active")


def _clear_moved(client: CatalogClient, options: GridOptions, ports: Mapping[str, int]) -> None:
    """Take yesterday's doors from elements whose port another one has today: the catalog wants a door to be one's."""
    today = {door: name for name in options.provider_names for door in localgrid.doors(ports, name)}
    for element in client.storage_elements():
        if any(today.get(door, element.name) != element.name for door in element.doors):
            client.put_storage_element(element.model_copy(update={"doors": ()}))


class Probe:
    """Wait for services until ``deadline`` (monotonic seconds); ``given_up`` says why waiting is in vain."""

    def __init__(self, paths: Paths, *, deadline: float, given_up: Callable[[], str | None]) -> None:
        self._session = GridSession(operator_identity(paths), connect_timeout=1.0, read_timeout=5.0)
        self._deadline = deadline
        self._given_up = given_up

    def wait_https(self, name: str, url: str) -> None:
        """Return when ``GET /health`` of the service answers, well or not."""
        self._until(f"{name} at {url}", lambda: self._healthy(url))

    def wait_echo(self, aet: str, host: str, port: int) -> None:
        """Return when the AE answers a C-ECHO."""
        from dgis.dimse.echo import echo

        self._until(f"AE {aet} at {host}:{port}", lambda: echo(host, port, called_aet=aet, calling_aet="DGISUP").ok)

    def put_first_policy(self, paths: Paths, ports: Mapping[str, int]) -> None:
        """Put HOME/policy.toml in force, written first when it is not there, unless the catalog has a policy."""
        client = CatalogClient(self._session, localgrid.service_url(ports["catalog"]))
        try:
            if client.policy() is not None:
                return
            if not paths.policy.exists():
                name = str(DN.from_name(paths.credential("operator").chain()[0].subject))
                localgrid.write_atomic(paths.policy, localgrid.policy_text(name).encode())
            client.put_policy(paths.policy.read_text(encoding="utf-8"), follows=0)
        except CatalogError as error:
            raise GridHomeError(f"{paths.policy} could not be put in force: {error}") from error

    def register_elements(self, options: GridOptions, ports: Mapping[str, int]) -> None:
        """Tell the catalog the site and where its storage elements are reached today."""
        client = CatalogClient(self._session, localgrid.service_url(ports["catalog"]))
        try:
            client.put_site(Site(name=localgrid.SITE, title="This machine"))
            _clear_moved(client, options, ports)
            for name in options.provider_names:
                client.put_storage_element(_element(ports, name))
        except CatalogError as error:
            raise GridHomeError(f"the catalog did not take the storage elements: {error}") from error

    def _healthy(self, url: str) -> bool:
        try:
            self._session.json("GET", f"{url}/health")
        except Answered:
            return True  # unwell, a full disk say: it serves what it can, dgis status shows the rest
        except ServiceError:
            return False
        return True

    def _until(self, what: str, answered: Callable[[], bool]) -> None:
        while not answered():
            reason = self._given_up()
            if reason is None and time.monotonic() > self._deadline:
                reason = "no answer in time"
            if reason is not None:
                raise GridHomeError(f"{what}: {reason}")
            time.sleep(PAUSE)
