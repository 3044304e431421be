"""No network, on purpose: inside `network_blocked` nothing reaches another machine, and every attempt is counted."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from labkit.errors import LabkitError


class NetworkBlocked(LabkitError, OSError):
    """Something asked for another machine while the network was blocked."""


@contextmanager
def network_blocked() -> Iterator[list[str]]:
    """Refuse every connection and every look-up of a name that leaves this machine, for all code of this process.

    Yields:
        Hosts that were asked for inside, in order; empty if nobody asked.
    """
    asked: list[str] = []
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refuse(host: Any) -> None:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name not in ("None", "localhost", "::1") and not name.startswith("127."):
            asked.append(name)
            raise NetworkBlocked(f"the network is blocked here, but something asked for {name}: use local files")

    def guarded(original: Any) -> Any:
        def call(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                refuse(address[0])
            return original(self, address)

        return call

    def no_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        refuse(host)
        return look_up(host, *args, **kwargs)

    socket.socket.connect, socket.socket.connect_ex = guarded(connect), guarded(connect_ex)  # type: ignore[method-assign]
    socket.getaddrinfo = no_look_up
    try:
        yield asked
    finally:
        socket.socket.connect, socket.socket.connect_ex = connect, connect_ex  # type: ignore[method-assign]
        socket.getaddrinfo = look_up
