"""Many services, one public port: HAProxy passes TLS on by its server name, untouched, and SSH by its greeting. Pure.

The configuration is the same for every site; where names lead and who may use them stands in two map files, which
change at run time without a reload: `networks` turns a client's address into a network that the site file names,
`routes` leads from network and name to a guest. What has no route is closed, whether the name or the client is unknown.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Network
from typing import Final

from dgis.deploy.plan import Front, FrontRoute

MARKER: Final = "DGIS_FRONT"
CONFIG, NETWORKS, ROUTES = "haproxy.cfg", "front-networks.map", "front-routes.map"
SOCKET: Final = "/run/haproxy/dgis.sock"
MASTER: Final = "/run/haproxy-master.sock"  # as Debian's unit starts it: it knows the processes from before a reload
_TEXT: Final = """\
# made from the site file by dgis deploy render; edit that, not this
global
    default-path config
    # which configuration is in force, for whoever asks the running process
    setenv {marker} {digest}
    user haproxy
    group haproxy
    log /dev/log local0 notice
    stats socket {socket} mode 600 level admin expose-fd listeners
    stats timeout 30s
    maxconn 4000
    # after a reload the old process keeps its connections, but not for ever
    hard-stop-after 12h

defaults
    mode tcp
    log global
    option dontlognull
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    # a peer that goes away without a word is found out
    option clitcpka
    option srvtcpka

frontend front
{binds}
    # one address, which may be a whole site behind NAT, does not fill the front
    stick-table type ip size 64k expire 10m store conn_cur
    tcp-request connection track-sc0 src
    tcp-request connection reject if {{ sc0_conn_cur gt 500 }}
    tcp-request inspect-delay 5s
    tcp-request content set-var(sess.name) req.ssl_sni,lower if {{ req.ssl_hello_type 1 }}
    tcp-request content set-var(sess.name) str({ssh}) if {{ req.payload(0,4) -m bin 5353482d }}
    tcp-request content set-var(sess.key) src,map_ip({networks},none),concat(|,sess.name,)
    tcp-request content set-var(sess.route) var(sess.key),map_str({routes}) if {{ var(sess.name) -m found }}
    tcp-request content set-dst var(sess.route),field(1,:) if {{ var(sess.route) -m found }}
    tcp-request content set-dst-port var(sess.route),field(2,:) if {{ var(sess.route) -m found }}
    tcp-request content accept if {{ var(sess.route) -m found }}
    tcp-request content reject if {{ var(sess.name) -m found }}
    # a whole greeting of TLS without a name has nowhere to go; what is still under way is waited for
    tcp-request content reject if {{ req.ssl_hello_type 1 }}
    tcp-request content reject if WAIT_END
    use_backend guests if {{ var(sess.route) -m found }}

backend guests
    # the address was set above: a new guest needs no new server line
    server guest 0.0.0.0:0
"""


def config(front: Front, *, socket: str = SOCKET) -> str:
    """haproxy.cfg; the map files lie beside it. In a guest it listens at any address, on a host at the public one."""
    return _config(front, socket, digest(front, socket=socket))


def digest(front: Front, *, socket: str = SOCKET) -> str:
    """What the configuration calls itself: another one when anything in it is another."""
    return hashlib.sha256(_config(front, socket, "").encode()).hexdigest()[:16]


def _config(front: Front, socket: str, digest: str) -> str:
    addresses = ("0.0.0.0",) if front.guest is not None else front.called
    binds = "\n".join(f"    bind {address}:{front.port}" for address in addresses)
    return _TEXT.format(
        socket=socket,
        binds=binds,
        ssh="ssh:",
        networks=NETWORKS,
        routes=ROUTES,
        marker=MARKER,
        digest=digest,
    )


def maps(front: Front | None) -> dict[str, dict[str, str]]:
    """Both maps as key to value, by file name, in the order in which they are written; empty without a front."""
    if front is None:
        return {NETWORKS: {}, ROUTES: {}}
    named = sorted({network for route in front.routes for network in route.sources})
    allowed = {network: [route for route in front.routes if _may(network, route)] for network in named}
    networks = {str(network): str(network) for network in named}
    routes = {
        f"{network}|{route.name}": f"{route.target}:{route.port}" for network in named for route in allowed[network]
    }
    return {NETWORKS: networks, ROUTES: routes}


def text(entries: dict[str, str]) -> str:
    """A map file."""
    return "".join(f"{key} {value}\n" for key, value in entries.items())


def files(front: Front, *, socket: str = SOCKET) -> dict[str, str]:
    """Everything that the front reads, by file name."""
    return {CONFIG: config(front, socket=socket), **{name: text(entries) for name, entries in maps(front).items()}}


def _may(network: IPv4Network, route: FrontRoute) -> bool:
    """HAProxy finds the longest matching network: a narrow one has every right of the wider ones around it."""
    return any(network.subnet_of(source) for source in route.sources)
