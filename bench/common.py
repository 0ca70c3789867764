"""What the benchmarks share: a synthetic model, a free port, a table, and a line about the machine."""

from __future__ import annotations

import json
import os
import platform
import socket
import struct
from pathlib import Path

import numpy as np

__all__ = ["free_port", "machine", "make_model", "table", "touch_free_memory"]


def make_model(path: Path, size_mib: int, *, seed: int = 1, tensors: int = 64) -> Path:
    """Writes a safetensors file of bf16-like noise of about `size_mib` MiB; the same bytes for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    each = (size_mib * 2**20 - 2**16) // tensors // 2 * 2
    header: dict[str, object] = {}
    for index in range(tensors):
        header[f"layers.{index}.weight"] = {
            "dtype": "BF16",
            "shape": [each // 2],
            "data_offsets": [index * each, (index + 1) * each],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    rng = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _ in range(tensors):
            weights = rng.normal(0, 0.02, each // 2).astype(np.float32)
            file.write((weights.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return path


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def touch_free_memory(directory: Path, size: int) -> None:
    """Has the kernel write `size` bytes of page cache and free them, so that the next writer gets memory that is there.

    A virtual machine that reports free pages to its host pays a fault in the host for each page that it takes
    back: a GiB of `pwrite` costs 0.6 to 1.4 s then, and 0.2 s otherwise, whoever happens to come second.
    """
    path = directory / "touched"
    block = bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(0, size, len(block)):
            file.write(block)
    path.unlink()


def machine() -> str:
    """One line that says where a table was made."""
    model = "unknown CPU"
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    control = congestion.read_text().strip() if congestion.exists() else "?"
    return (
        f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"TCP {control}"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
