"""HAProxy's configuration: a backend for each pool, a port for it and for each of its slots."""

from collections.abc import Iterator
from typing import Final

from grange.autoscaler.wiring.ports import Wiring, slots
from grange.capacity.facts import Pool
from grange.cloud.haproxy import HaproxySettings
from grange.errors import OperatorError

_GLOBAL: Final = """\
# Made by 'grange capacity haproxy-config'. The autoscaler sets addresses while HAProxy runs: here
# every server begins in maintenance, at no address.
#
# On a reload, sessions that there are go on in the process of before, and slots go on in the new
# one if their state is saved first. It must not outlive a stop: addresses are others' by then.
# For systemd, in haproxy.service.d/grange.conf:
#   [Service]
#   ExecStartPre=/bin/rm -f {state_file}
#   ExecReload=
#   ExecReload=/bin/sh -c 'echo "show servers state" | socat - {socket} >{state_file}'
#   ExecReload=/usr/sbin/haproxy -Ws -f $CONFIG -c -q
#   ExecReload=/bin/kill -USR2 $MAINPID

global
    log /dev/log local0
{runs_as}    stats socket {socket} {rights} level admin expose-fd listeners
    stats timeout 1m
    server-state-file {state_file}
    # Builds that a reload left in an old process have so long
    hard-stop-after {hard_stop_s}s

defaults
    mode tcp
    log global
    option tcplog
    option dontlognull
    timeout connect 5s
    timeout check 3s
    # How long a build waits for room where all builders are full
    timeout queue 5m
    # Above the longest build: a client's SSH may be told to send nothing of its own meanwhile
    timeout client 24h
    timeout server 24h
    # A host that is gone leaves its sessions within two minutes
    option clitcpka
    clitcpka-idle 60s
    clitcpka-intvl 15s
    clitcpka-cnt 4
    option srvtcpka
    srvtcpka-idle 60s
    srvtcpka-intvl 15s
    srvtcpka-cnt 4
    load-server-state-from-file global
"""

_BACKEND: Final = """\

backend {backend}
    balance leastconn
    # An alias means its own slot
{uses}
    option tcp-check
    tcp-check expect rstring ^SSH-2\\.0-
    # With fall 1 a server that was never checked would look healthy
    default-server check inter 1s fastinter 500ms rise 1 fall 3 maxconn {maxconn} disabled
    # Of a server with a name, which nobody looks up, a reload keeps the address; with an address
    # here it would keep all but that, and send the slot's traffic there
    default-server init-addr last,127.0.0.1
{servers}
"""

_POOL: Final = """\

# Pool {name}: {systems}
frontend {backend}
    bind {host}:{port}
    default_backend {backend}
"""

# `use-server` alone would send to a server that drains, and past one in maintenance to any other.
# Of a drain only the weight tells here, which the autoscaler therefore takes away as well.
_ALIAS: Final = """\

frontend {slot}
    bind {host}:{port}
    tcp-request connection reject unless {{ srv_is_up({server}) }} {{ srv_uweight({server}) gt 0 }}
    default_backend {backend}
"""


def haproxy_config(
    wiring: Wiring,
    settings: HaproxySettings,
    state_file: str = "/var/lib/haproxy/grange.state",
    user: str = "",
    group: str = "",
) -> str:
    """A whole configuration file. `user` is whom HAProxy becomes, and `group` who may open its
    socket; "" for whoever starts it. Raises OperatorError where ports or backends are too few."""
    if len(wiring.pools) > 1 and "{pool}" not in settings.backend:
        raise OperatorError(
            f"backend {settings.backend!r} in [haproxy] is one for {len(wiring.pools)} pools, whose"
            " slots differ in what they can build; name it as in 'grange-{pool}'"
        )
    head = _GLOBAL.format(
        socket=settings.socket,
        state_file=state_file,
        hard_stop_s=f"{settings.hard_stop_s:.0f}",
        runs_as=f"    user {user}\n" if user else "",
        rights=f"group {group} mode 660" if group else "mode 660",
    )
    return head + "".join(part for pool in wiring.pools for part in _pool(wiring, settings, pool))


def _pool(wiring: Wiring, settings: HaproxySettings, pool: Pool) -> Iterator[str]:
    port = wiring.port(pool.name)
    backend = settings.backend_of(f"{pool.name}-1")
    names = [slot for _, slot in slots(pool)]
    yield _POOL.format(
        name=pool.name,
        systems=" ".join((*pool.systems, *pool.features)),
        backend=backend,
        host=_bound(wiring.host),
        port=port,
    )
    for number, slot in slots(pool):
        yield _ALIAS.format(
            slot=slot,
            host=_bound(wiring.host),
            port=port + number,
            server=f"{backend}/{slot}",
            backend=backend,
        )
    yield _BACKEND.format(
        backend=backend,
        uses="\n".join(f"    use-server {slot} if {{ fe_name {slot} }}" for slot in names),
        maxconn=pool.capacity,
        servers="\n".join(f"    server {slot} {slot}.invalid:1" for slot in names),
    )


def _bound(host: str) -> str:
    return f"[{host}]" if ":" in host else host
