"""Prometheus text format (version 0.0.4), written by hand: a dozen numbers need no library."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

__all__ = ["Metric", "render"]


class Metric(Struct, frozen=True):
    """One metric family: name without prefix, type, help, and (labels, value) samples."""

    name: str
    kind: str
    help: str
    samples: tuple[tuple[dict[str, str], float], ...]


def render(metrics: Iterable[Metric]) -> str:
    """The text that `/metrics` answers."""
    lines: list[str] = []
    for metric in metrics:
        name = f"megalfs_{metric.name}"
        lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
        for labels, value in metric.samples:
            shown = ",".join(f'{key}="{_escape(text)}"' for key, text in sorted(labels.items()))
            lines.append(f"{name}{{{shown}}} {value:g}" if shown else f"{name} {value:g}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
