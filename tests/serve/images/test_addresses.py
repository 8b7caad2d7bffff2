"""Only what everyone on the internet reaches alike is public, however it is written."""

from ipaddress import ip_address

import pytest

from edgeclip.serve.images.addresses import is_plain_host, is_public, is_public_web

PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "93.184.215.14", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0"),
    *("192.167.255.255", "192.169.0.0", "223.255.255.255", "11.0.0.0", "126.255.255.255", "128.0.0.0"),
    *("2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001:82a::200e", "64:ff9b::8.8.8.8"),
    "2002:808:808::1",
]
CLOSED = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.0", "100.100.100.200", "100.127.255.255"),
    *("127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254", "169.254.0.1", "172.16.0.0"),
    *("172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "192.168.255.255", "198.18.0.1"),
    *("198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
    "255.255.255.255",
    *("::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::7f00:1", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1"),
    *("64:ff9b::169.254.169.254", "64:ff9b:1::808:808", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001::1"),
    *("2001:0:808:808::1", "2001:db8::1", "2001:10::1", "3fff::1", "5f00::1", "100::1", "fc00::1", "fd00:ec2::254"),
    *("fdff::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1", "4000::1", "2606:4700::1%eth0"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", CLOSED)
def test_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(("port", "is_open"), [(80, True), (443, True), (22, False), (8080, False), (6379, False)])
def test_only_ports_of_the_web(port: int, is_open: bool) -> None:
    assert is_public_web(ip_address("8.8.8.8"), port) is is_open
    assert not is_public_web(ip_address("10.0.0.1"), port)


@pytest.mark.parametrize(
    "host", ["example.org", "example.org.", "8.8.8.8", "2001:db8::1", "a1", "3com.com", "xn--p1ai"]
)
def test_plain_hosts(host: str) -> None:
    assert is_plain_host(host)


@pytest.mark.parametrize(
    "host",
    ["0x7f.1", "2130706433", "127.1", "017700000001", "0x7f000001", "127.0.0.01", "1.2.3.4.5", "a.0x", "", "."],
)
def test_an_address_in_disguise_is_not_plain(host: str) -> None:
    assert not is_plain_host(host)
