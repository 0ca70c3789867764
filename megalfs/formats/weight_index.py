"""`*.safetensors.index.json` and its like: which files of a sharded model a loader will open, by `weight_map`.

Loaders join these names to the directory without a look (research/eco.md 6.2), so a name that is not a file of
the same directory tree is worth a word before one runs: a shard that was left out, or a path that leads away.
"""

from __future__ import annotations

import json
from collections.abc import Collection

__all__ = ["INDEX_BYTES_MAX", "INDEX_SUFFIX", "missing_shards"]

INDEX_SUFFIX = ".index.json"
INDEX_BYTES_MAX = 64 << 20  # that of the largest models, of 100,000 tensors, has some 10 MB


def missing_shards(name: str, content: bytes, names: Collection[str]) -> list[str]:
    """The files that an index names and that are not there, sorted; none for what is no index.

    Args:
        name: of the index below its directory, joined by `/`; the shards lie beside it.
        names: of all files below that directory.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return []
    weights = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weights, dict):
        return []
    prefix = name.rpartition("/")[0]
    shards = {shard for shard in weights.values() if isinstance(shard, str)}
    return sorted(shard for shard in shards if (f"{prefix}/{shard}" if prefix else shard) not in names)
