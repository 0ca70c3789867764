from megalfs_ext._buffers import BufferLike

def scan(
    buffer: BufferLike,
    min_: int,
    avg: int,
    max_: int,
    normalization: int,
    is_final: bool,
    kernel: str | None,
    /,
) -> bytes: ...
def cut_points(
    buffer: BufferLike,
    min_: int,
    avg: int,
    max_: int,
    normalization: int,
    threads: int,
    kernel: str | None,
    /,
) -> bytes: ...
def blake3_many(buffer: BufferLike, ends: BufferLike, kernel: str | None, /) -> bytes: ...
def blake3_groups(buffer: BufferLike, offset: int, kernel: str | None, /) -> bytes: ...
def blake3_join(groups: BufferLike, kernel: str | None, /) -> bytes: ...
def sha256_many(buffer: BufferLike, ends: BufferLike, kernel: str | None, /) -> bytes: ...
def verify_chunks(
    buffer: BufferLike, lengths: BufferLike, ids: BufferLike, kernel: str | None, /
) -> list[int]: ...
def verify_links(
    buffer: BufferLike, before: BufferLike, after: BufferLike, kernel: str | None, /
) -> list[int]: ...
def verify_file_links(
    fd: int,
    size: int,
    offsets: BufferLike,
    before: BufferLike,
    after: BufferLike,
    kernel: str | None,
    /,
) -> list[int]: ...
def sha256_finish(state: BufferLike, tail: BufferLike, total: int, kernel: str | None, /) -> bytes: ...
def chain_update(
    state: BufferLike,
    carry: BufferLike,
    total: int,
    buffer: BufferLike,
    ends: BufferLike,
    kernel: str | None,
    /,
) -> tuple[bytes, bytes, bytes, bytes]: ...
def chunk_share(kernel: str | None, /) -> float: ...
def kernel_states(stage: str, /) -> dict[str, str]: ...
def default_kernel(stage: str, /) -> str: ...
