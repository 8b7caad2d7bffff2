"""Judge the addresses that a URL of an unknown client leads to: values in, values out.

The public internet is allowed, and nothing that this machine reaches and the client does not: no private, loopback,
link-local, shared, multicast or reserved address, no metadata service of a cloud, and none of these behind IPv6's
ways of writing IPv4. The ranges are IANA's special-purpose registries (RFC 6890 and its updates), as Python's
ipaddress has them, and what it leaves out in some version.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

_WEB_PORTS = (80, 443)
_CLOSED_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network; 0.0.0.0 is this machine
            "10.0.0.0/8",
            "100.64.0.0/10",  # carriers' NAT; 100.100.100.200 is Alibaba's metadata
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's host, at an address that is public by its looks
            "169.254.0.0/16",  # link-local; 169.254.169.254 is most clouds' metadata
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is Oracle's metadata
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",  # multicast, reserved, broadcast
        ),
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")
_CLOSED_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments, Teredo among them
            "2001:db8::/32",
            "2620:4f:8000::/48",
            "3fff::/20",
        ),
    )
)
# Networks whose last 32 bits are an IPv4 address. By NAT64 hosts without IPv4 reach all of it.
_NAT64 = IPv6Network("64:ff9b::/96")


def embedded_v4(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to: mapped (::ffff:1.2.3.4), NAT64 or 6to4; None for others."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, where it means the same from everywhere."""
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _CLOSED_V4)
    if address.scope_id is not None or address.ipv4_mapped is not None:
        return False
    if (inner := embedded_v4(address)) is not None:
        return is_public(inner)
    # Outside 2000::/3 lie ::1, fc00::/7, fe80::/10, ff00::/8 and local NAT64.
    return address in _GLOBAL_V6 and address.is_global and not any(address in network for network in _CLOSED_V6)


def is_public_web(address: Address, port: int) -> bool:
    """Whether an unknown client's URL may lead to an address and port: a public address, and a port of the web."""
    return port in _WEB_PORTS and is_public(address)


def is_plain_host(host: str) -> bool:
    """Whether a URL's host is a name, or an address in its one normal form.

    The resolvers of some systems read 0x7f.1, 017700000001 and 2130706433 as 127.0.0.1. What ends in a number is an
    address (WHATWG URL, "ends in a number"), and here only in dotted decimals, or IPv6.
    """
    try:
        ip_address(host)
        return True
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2]
        return bool(last) and re.fullmatch(r"\d+|0[xX][0-9a-fA-F]*", last) is None and ":" not in host
