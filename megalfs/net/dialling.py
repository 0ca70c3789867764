"""One stream to a key, for whoever runs no node of his own: the addresses are tried one after another."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from megalfs.core.identity import NodeKey
from megalfs.core.signing import SigningKey
from megalfs.errors import MegalfsError, NotFoundError
from megalfs.formats.hostport import HostPort
from megalfs.net.link import Carrier, Link, Stream
from megalfs.net.link_quic import QuicCarrier
from megalfs.net.link_tls import TlsCarrier

__all__ = ["PeerStream", "open_stream"]


class PeerStream(Struct, frozen=True):
    """A stream and the link it lives on."""

    stream: Stream
    link: Link

    @classmethod
    async def on(cls, link: Link, service: str, subject: str) -> PeerStream:
        """A stream of a link that nothing else uses; raises what the peer refused with."""
        try:
            return cls(await link.open(service, subject), link)
        except BaseException:
            await link.close()
            raise

    async def close(self) -> None:
        """Ends both."""
        await self.stream.close()
        await self.link.close()


async def open_stream(
    private: SigningKey,
    key: NodeKey,
    service: str,
    subject: str = "",
    *,
    addresses: Iterable[HostPort],
    via: str | None = None,
) -> PeerStream:
    """A stream to `key` at the first address where it answers.

    Args:
        via: `quic`, or TLS.

    Raises:
        NotFoundError: there are no addresses.
        MegalfsError: nobody answers, somebody else does, or the peer refused.
    """
    carrier: Carrier = QuicCarrier(private) if via == "quic" else TlsCarrier(private)
    failure: MegalfsError = NotFoundError(f"no address of {key.peer_id} is known", hint="?addr=HOST:PORT")
    for address in dict.fromkeys(addresses):
        try:
            link = await carrier.dial(address, key)
        except MegalfsError as error:
            failure = error
            continue
        return await PeerStream.on(link, service, subject)
    raise failure
