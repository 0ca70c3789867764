"""Hosts in network namespaces with shaped links, for benches that need real links: made here, removed here.

Each host is a namespace with one veth into a bridge; tbf shapes its upload inside and its download on the bridge's
side. The bridges are in a namespace of their own, whose frames no firewall of this machine looks at (br_netfilter does,
where Docker was: 3 % of the CPU). Needs root and iproute2. Names carry the process id, so two runs do not meet, and
everything is removed on exit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from types import TracebackType
from typing import Self

__all__ = ["Host", "Network", "why_not"]

BURST = "256kb"
LATENCY = "50ms"


def why_not() -> str | None:
    """The reason why namespaces cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "iproute2 is not installed (apt-get install iproute2)"
    probe = f"mp{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"ip netns add: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=False)
    return None


def run(*argv: str) -> None:
    """Runs one configuration command."""
    subprocess.run(argv, check=True, capture_output=True)


@dataclass(frozen=True)
class Host:
    """One namespace."""

    name: str
    address: str
    outside: str
    switch: str

    def command(self, argv: list[str]) -> list[str]:
        """The same command inside the namespace."""
        return ["ip", "netns", "exec", self.name, *argv]

    def bytes_sent(self) -> int:
        """What left through its link, headers included."""
        text = subprocess.run(
            self.command(["cat", "/sys/class/net/eth0/statistics/tx_bytes"]),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return int(text)

    def shape(self, mbit: float, *, up_mbit: float | None = None) -> None:
        """Sets both directions of its link, or its downlink and its uplink."""
        for name, device, rate in ((self.switch, self.outside, mbit), (self.name, "eth0", up_mbit or mbit)):
            shaping = ["rate", f"{rate}mbit", "burst", BURST, "latency", LATENCY]
            run("tc", "-n", name, "qdisc", "replace", "dev", device, "root", "tbf", *shaping)

    def cut(self) -> None:
        """Takes the link down: a silent death."""
        run("ip", "-n", self.switch, "link", "set", self.outside, "down")


class Network:
    """A bridge with hosts; a context manager. `racks` > 1 puts hosts on bridges joined by one thin link."""

    def __init__(
        self,
        count: int,
        mbit: float,
        *,
        racks: int = 1,
        thin_mbit: float | None = None,
        congestion: str = "reno",
    ) -> None:
        self._tag = os.getpid() % 10000
        self._switch = f"ms{self._tag}"
        self._count = count
        self._mbit = mbit
        self._racks = racks
        self._thin_mbit = thin_mbit
        self._congestion = congestion
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        try:
            self._add_switch()
            for index in range(self._count):
                self.hosts.append(self._host(index))
            if self._racks == 2:
                self._join_racks()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def rack_of(self, index: int) -> int:
        """Host 0 (the seeder) and the first half are in rack 0."""
        return 0 if self._racks == 1 or index <= (self._count - 1) // 2 else 1

    def thin_bytes(self) -> int:
        """Bytes that crossed the thin link, both ways."""
        base = "/sys/class/net/thin/statistics"
        command = ["ip", "netns", "exec", self._switch, "cat", f"{base}/rx_bytes", f"{base}/tx_bytes"]
        return sum(
            map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        )

    def _add_switch(self) -> None:
        run("ip", "netns", "add", self._switch)
        for filter_ in ("iptables", "ip6tables", "arptables"):
            setting = f"net.bridge.bridge-nf-call-{filter_}=0"
            # Without br_netfilter there is no such setting, and no need for it.
            self._try("ip", "netns", "exec", self._switch, "sysctl", "-q", "-w", setting)
        for rack in range(self._racks):
            self._ip("link", "add", f"r{rack}", "type", "bridge")
            self._ip("link", "set", f"r{rack}", "up")

    def _ip(self, *argv: str) -> None:
        """Configures the switch."""
        run("ip", "-n", self._switch, *argv)

    def _host(self, index: int) -> Host:
        name, outside = f"mh{self._tag}n{index}", f"n{index}"
        address = f"10.77.{self.rack_of(index)}.{index + 1}"
        run("ip", "netns", "add", name)
        self._ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        self._ip("link", "set", outside, "master", f"r{self.rack_of(index)}", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", name, "addr", "add", f"{address}/16", "dev", "eth0")
        host = Host(name, address, outside, self._switch)
        run(*host.command(["sysctl", "-q", "-w", f"net.ipv4.tcp_congestion_control={self._congestion}"]))
        host.shape(self._mbit)
        return host

    def _join_racks(self) -> None:
        self._ip("link", "add", "thin", "type", "veth", "peer", "name", "niht")
        for end, rack in (("thin", 0), ("niht", 1)):
            self._ip("link", "set", end, "master", f"r{rack}", "up")
            if self._thin_mbit is not None:
                shaping = ["rate", f"{self._thin_mbit}mbit", "burst", BURST, "latency", LATENCY]
                run("tc", "-n", self._switch, "qdisc", "add", "dev", end, "root", "tbf", *shaping)

    def _remove(self) -> None:
        # The links by themselves: a namespace takes its own along some time later, when the next round makes them.
        for index in range(self._count):
            self._try("ip", "-n", self._switch, "link", "del", f"n{index}")
            self._try("ip", "netns", "del", f"mh{self._tag}n{index}")
        self._try("ip", "netns", "del", self._switch)

    @staticmethod
    def _try(*argv: str) -> None:
        subprocess.run(argv, capture_output=True, check=False)
