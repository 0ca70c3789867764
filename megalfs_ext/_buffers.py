"""What the kernels take as bytes: anything contiguous with a buffer, numpy arrays included.

numpy's stubs declare the buffer protocol from Python 3.12 on only, hence a name for both. numpy itself is not
imported here, so that hashing can start before it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from _typeshed import ReadableBuffer

__all__ = ["BufferLike", "view_of"]

BufferLike: TypeAlias = "ReadableBuffer | npt.NDArray[np.generic]"


def view_of(buffer: BufferLike) -> memoryview:
    """The buffer's memory in its own item type."""
    return memoryview(buffer)  # type: ignore[arg-type]  # an ndarray has a buffer, see above
