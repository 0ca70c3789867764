"""Blocking TCP sockets as the data path wants them.

Bulk bytes move on plain blocking sockets in threads: measured 4.5 GB/s verified, against 3.2-3.7 for asyncio
and 1.6-2.0 for an HTTP client library (research: pull prototype).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable

from msgspec import Struct

from megalfs.errors import BusyError, MegalfsError, NotAuthorisedError, TemporaryError, UsageError
from megalfs.formats.hostport import HostPort

__all__ = ["SocketOptions", "abort", "cannot_listen", "receive_exactly", "set_receive_timeout", "tune"]

# How long a slow granule may keep the scheduler without a sign of life; far below its shortest patience.
RECEIVE_TIMEOUT_S = 0.5
# A thread that waits for a relayed part on a slow link is woken for so many bytes of it, not for every few segments: a
# swarm of 16 on 50 Mbit/s links made 10,600 context switches a second instead of 16,100. Longer runs are those of fast
# links, where bytes do not trickle.
LOW_WATER_BYTES = 32 << 10
TRICKLE_BYTES_MAX = 256 << 10
# Unsent bytes the kernel may hold before it calls the socket unwritable. Small, so that an upload is not over for
# us while all of it still waits here: with 256 KiB, a whole piece, up to fifteen shared an uplink of eight slots.
# The congestion window itself is untouched.
NOTSENT_LOWAT_BYTES = 16 * 1024
# Never below this many segments: `sendfile` holds back one that is not full for 0.2 s, hoping for more, and would
# wait for it to leave before it gives more. On loopback a segment has 64 KiB.
NOTSENT_SEGMENTS_MIN = 4


class SocketOptions(Struct, frozen=True):
    """What the operator may set on bulk sockets. `congestion` names a TCP congestion control, "" the system's."""

    congestion: str = ""


def cannot_listen(
    address: HostPort, error: OSError | UnicodeError, *, flag: str, kind: str = ""
) -> MegalfsError:
    """Why nobody can listen there: a taken port is busy, a low one not ours, no address of this machine nonsense.

    Args:
        error: of `bind`; a UnicodeError is a host name that IDNA cannot write.
        flag: how the user names another address.
    """
    line = f"cannot listen on {address}{kind}: {getattr(error, 'strerror', None) or error}"
    match getattr(error, "errno", None):
        case errno.EADDRINUSE:
            return BusyError(line, hint=f"another program uses that port; choose one with {flag} HOST:PORT")
        case errno.EACCES | errno.EPERM:
            return NotAuthorisedError(line, hint=f"choose a port above 1023 with {flag} HOST:PORT")
        case _:
            return UsageError(line, hint=f"{flag} takes an address of this machine, or 0.0.0.0")


def tune(sock: socket.socket, options: SocketOptions) -> None:
    """Sets what every connected peer socket has: no Nagle, keep-alive, a short unsent queue."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        segment_bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        unsent_bytes = max(NOTSENT_LOWAT_BYTES, NOTSENT_SEGMENTS_MIN * segment_bytes)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent_bytes)
    if options.congestion and hasattr(socket, "TCP_CONGESTION"):
        # A name this kernel lacks must not cost the transfer: the system's own is always right.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, options.congestion.encode("ascii"))


def set_receive_timeout(sock: socket.socket) -> None:
    """Lets a blocked receive return now and then with what has come; the socket stays a blocking one.

    `settimeout` would make it non-blocking underneath and lose MSG_WAITALL (pull prototype).
    """
    seconds, microseconds = divmod(int(RECEIVE_TIMEOUT_S * 1e6), 1_000_000)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", seconds, microseconds))


def receive_exactly(
    sock: socket.socket, view: memoryview, progressed: Callable[[int], None] | None = None
) -> None:
    """Fills `view` from a blocking socket.

    Args:
        progressed: told how many bytes came whenever the receive time-out cut a wait short.

    Raises:
        TemporaryError: the connection ended first.
    """
    at_end = len(view) - LOW_WATER_BYTES
    try:
        if 0 < at_end <= TRICKLE_BYTES_MAX:
            # As long as more than that is to come, so that we are always woken.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, LOW_WATER_BYTES)
            _fill(sock, view[:at_end], progressed)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            view = view[at_end:]
        _fill(sock, view, progressed)
    except OSError as error:
        raise TemporaryError(f"the connection broke: {error.strerror or error}") from error


def _fill(sock: socket.socket, view: memoryview, progressed: Callable[[int], None] | None) -> None:
    wanted = len(view)
    got = 0
    while got < wanted:
        try:
            count = sock.recv_into(view[got:], wanted - got, socket.MSG_WAITALL)
        except BlockingIOError:
            continue
        if count == 0:
            raise TemporaryError("the connection was closed in the middle of a message")
        got += count
        if got < wanted and progressed is not None:
            progressed(count)


def abort(sock: socket.socket) -> None:
    """Ends a connection at once (RST), waking whoever is blocked on it; the other side sees no clean end."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
