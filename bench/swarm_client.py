"""One puller of bench_swarm: imports everything, says so, waits for the word, pulls, shares on until told to stop.

swarm_client.py ROOT OUT LISTEN OID SOURCE...    (run by bench_swarm.py, inside a namespace)

A SOURCE is a peer, HOST:PORT, or an origin, http://...
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import threading
from pathlib import Path

from megalfs.cli.main import GC_THRESHOLD
from megalfs.config import load
from megalfs.core.signing import SigningKey, sign
from megalfs.formats.hostport import HostPort
from megalfs.node import http_server  # noqa: F401 - loaded before the word: 16 machines would load it side by side
from megalfs.node.api import PullOptions, run_pull
from megalfs.store.blobs import Store
from megalfs.store.root import Root

LINGER_S_MAX = 900.0


async def main() -> None:
    """Runs one pull."""
    root, out, listen, oid, *sources = sys.argv[1:]
    settings = load(flags={}, environ=os.environ)
    sign(SigningKey(bytes(32)), "warm", b"")  # cryptography is loaded now, not in the measured part
    store = Store(Root.open(Path(root), create=True))
    options = PullOptions(
        dest=Path(out),
        peers=tuple(HostPort.parse(each) for each in sources if "//" not in each),
        origins=tuple(each for each in sources if "//" in each),
        listen=HostPort.parse(listen),
        linger_s=LINGER_S_MAX,
        wait_peers_s=60,
    )
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    print("ready", flush=True)
    sys.stdin.readline()

    def wait_for_stop() -> None:
        sys.stdin.readline()
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait_for_stop, daemon=True).start()
    summary = await run_pull(
        [oid],
        options,
        store=store,
        settings=settings,
        cwd=Path.cwd(),
        on_progress=lambda _: None,
        stop=stop,
        on_done=lambda _: print("done", flush=True),
    )
    used = resource.getrusage(resource.RUSAGE_SELF)
    record = {
        "seconds": summary.seconds,
        "bytes_fetched": summary.bytes_fetched,
        "by_peer": summary.bytes_by_peer,
        "cpu_s": used.ru_utime + used.ru_stime,
        "rss_mib": used.ru_maxrss / 1024,
    }
    print(json.dumps(record), flush=True)


gc.set_threshold(GC_THRESHOLD, 10, 10)  # as the command line does: 20 ms of collecting at the start of each
gc.freeze()
asyncio.run(main())
