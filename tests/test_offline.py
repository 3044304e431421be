"""`network_blocked`: nothing leaves the machine, attempts are counted, everything works again afterwards."""

import socket
import urllib.request

import pytest

from labkit.offline import NetworkBlocked, network_blocked


def test_connections_and_look_ups_of_other_machines_are_refused_and_counted():
    before = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo
    with network_blocked() as asked:
        with pytest.raises(OSError, match="the network is blocked here, but something asked for"):
            urllib.request.urlopen("http://example.org/", timeout=5)
        with socket.socket() as one, pytest.raises(NetworkBlocked, match="192.0.2.1"):
            one.connect(("192.0.2.1", 80))
        with socket.socket() as one, pytest.raises(NetworkBlocked):
            one.connect_ex(("192.0.2.1", 80))
    assert asked == ["example.org", "192.0.2.1", "192.0.2.1"]
    assert (socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo) == before


def test_this_machine_is_still_reached():
    with socket.create_server(("127.0.0.1", 0)) as server, network_blocked() as asked:
        with socket.create_connection(("localhost", server.getsockname()[1]), timeout=5):
            pass
    assert not asked
