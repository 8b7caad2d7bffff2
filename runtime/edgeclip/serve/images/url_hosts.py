"""The hosts beside the public internet that URLs may name: the operator's list, and what each entry opens.

    images.corp.example            https, port 443
    images.corp.example:9000       https, that port
    http://images.corp.example     http, port 80; http://host:9000 another
    *.corp.example                 every name below it, and not corp.example itself
    10.1.2.3, [fd00::5]:9000       an address, as a URL writes it
    10.1.0.0/16                    every address of the network, as a URL writes it

A listed name may mean private addresses, for its names are the operator's own. The addresses at which clouds hand
out credentials stay closed though, since a name may come to mean one of them, until the address itself is listed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from edgeclip.errors import InputError
from edgeclip.serve.images.addresses import Address, embedded_v4

Network = IPv4Network | IPv6Network

_DEFAULT_PORTS = {"https": 443, "http": 80}
_ENTRY = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9a-f:.]+\]|[^:/\[\]]+)(?P<bits>/\d{1,3})?(?::(?P<port>\d{1,5}))?"
)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
# Metadata services, and what is no host at all: link-local (AWS, Google and Azure at 169.254.169.254, containers of
# AWS at 169.254.170.2), Azure's 168.63.129.16, Alibaba's 100.100.100.200, Oracle's 192.0.0.192; in IPv6 AWS, Google.
_NEVER_BY_NAME = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32"),
            *("224.0.0.0/3", "::/128", "fd00:ec2::254/128", "fd20:ce::254/128", "fe80::/10", "ff00::/8"),
        ),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlHost:
    """One entry: a scheme and port, and a name, a suffix of names (".corp.example") or a network of addresses."""

    scheme: str
    port: int
    name: str | None = None
    suffix: str | None = None
    network: Network | None = None

    def is_of(self, scheme: str, host: str, port: int) -> bool:
        """Whether a URL's scheme, host (in lower case, without a dot at the end) and port are this entry's."""
        if (scheme, port) != (self.scheme, self.port):
            return False
        if self.network is not None:
            return (address := _address(host)) is not None and _is_in(address, self.network)
        return host == self.name or (self.suffix is not None and host.endswith(self.suffix))

    def may_reach(self, address: Address) -> bool:
        """Whether a connection to an address that the host means is open."""
        if self.network is not None and self.network.num_addresses == 1:
            return True
        forms = (address, embedded_v4(address))
        return not any(_is_in(form, closed) for form in forms if form is not None for closed in _NEVER_BY_NAME)


def parse_url_hosts(entries: Iterable[str]) -> tuple[UrlHost, ...]:
    """The list of a setting; InputError for an entry that is none."""
    return tuple(map(_parse, entries))


def _parse(entry: str) -> UrlHost:
    wanted = "host, host:port, http://host, *.suffix, an address or a network as 10.1.0.0/16"
    found = _ENTRY.fullmatch(entry.lower())
    if found is None:
        raise InputError(f"URL host {entry[:80]!r}: wanted {wanted}")
    scheme = found["scheme"] or "https"
    port = int(found["port"] or _DEFAULT_PORTS[scheme])
    host = found["host"].strip("[]").removesuffix(".")
    if not 0 < port < 65536:
        raise InputError(f"URL host {entry[:80]!r}: a port is 1 to 65535; wanted {wanted}")
    try:
        return UrlHost(scheme=scheme, port=port, network=ip_network(host + (found["bits"] or "")))
    except ValueError as error:
        is_number = host.rpartition(".")[2].isdigit()
        if found["bits"] or is_number or not _NAME.fullmatch(host):
            reason = f"{error}" if found["bits"] or is_number else "a name is written in ASCII, an IPv6 address in []"
            raise InputError(f"URL host {entry[:80]!r}: {reason}; wanted {wanted}") from error
    if host.startswith("*."):
        return UrlHost(scheme=scheme, port=port, suffix=host[1:])
    return UrlHost(scheme=scheme, port=port, name=host)


def _address(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_in(address: Address, network: Network) -> bool:
    return address.version == network.version and address in network
