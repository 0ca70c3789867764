from _typeshed import ReadableBuffer

def scan(
    buffer: ReadableBuffer,
    min_: int,
    avg: int,
    max_: int,
    normalization: int,
    is_final: bool,
    kernel: str | None,
    /,
) -> bytes: ...
def cut_points(
    buffer: ReadableBuffer,
    min_: int,
    avg: int,
    max_: int,
    normalization: int,
    threads: int,
    kernel: str | None,
    /,
) -> bytes: ...
def blake3_many(buffer: ReadableBuffer, ends: ReadableBuffer, kernel: str | None, /) -> bytes: ...
def sha256_many(buffer: ReadableBuffer, ends: ReadableBuffer, kernel: str | None, /) -> bytes: ...
def verify_chunks(
    buffer: ReadableBuffer, lengths: ReadableBuffer, ids: ReadableBuffer, kernel: str | None, /
) -> list[int]: ...
def verify_segments(buffer: ReadableBuffer, states: ReadableBuffer, kernel: str | None, /) -> list[int]: ...
def sha256_finish(
    state: ReadableBuffer, tail: ReadableBuffer, total: int, kernel: str | None, /
) -> bytes: ...
def chain_update(
    state: ReadableBuffer,
    carry: ReadableBuffer,
    total: int,
    buffer: ReadableBuffer,
    ends: ReadableBuffer,
    kernel: str | None,
    /,
) -> tuple[bytes, bytes, bytes, bytes]: ...
def kernel_states(stage: str, /) -> dict[str, str]: ...
def default_kernel(stage: str, /) -> str: ...
