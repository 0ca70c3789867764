"""What the benchmarks share: a synthetic model, a free port, a table, and a line about the machine."""

from __future__ import annotations

import json
import os
import platform
import socket
import struct
from pathlib import Path

import numpy as np

__all__ = ["free_port", "machine", "make_model", "table"]


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
