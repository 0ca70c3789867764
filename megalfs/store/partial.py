"""A file being pulled: preallocated beside its target, with a sidecar that says what is verified and written.

Order is what makes `kill -9` safe: data first, then the sidecar, then the rename. No file lock is trusted (on
Lustre, GPFS and NFS they are granted to everybody): each pull has a partial of its own name. One whose owner
is dead, or has not been heard of for 30 s from another machine, is taken over by renaming its sidecar, which
one process can do. What the sidecar claims is hashed again before it counts.

The whole size is allocated first, so a full disk is known before the first byte. When it fills all the same
(a quota), the partial and its allocation stay, and the next run resumes.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from msgspec.structs import replace

from megalfs.core.bitfield import Bitfield, Run
from megalfs.core.chunk_proofs import ChunkProofs
from megalfs.core.ids import Oid
from megalfs.errors import BusyError, SpaceError
from megalfs.store.claim import (
    PART_SUFFIX,
    STATE_SUFFIX,
    Claim,
    claim_abandoned,
    is_own_file,
    part_names,
    state_name_of,
)
from megalfs.store.files import fsync_dir, map_os_errors, mode_with_x, write_all, write_atomic
from megalfs.store.identity import Identity
from megalfs.store.partial_state import (
    PartialState,
    append_records,
    decode_records,
    encode_record,
    overwrite,
    save_bits,
    write_state,
)
from megalfs.store.target import check_target, give_name
from megalfs.store.verify import PieceReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from megalfs.core.manifest import Manifest
    from megalfs.core.parts import Stretch
    from megalfs.store.root import Root

__all__ = ["PART_SUFFIX", "STATE_SUFFIX", "Partial", "check_target", "is_own_file", "register_directory"]

RESERVE_BYTES = 64 << 20  # left free for others; a disk filled to the last block breaks more than one pull


class Partial:
    """One pull's file. `write` and `mark` may be called from any thread; the rest from the driver's."""

    def __init__(self, target: Path, manifest: Manifest | None, directory_fd: int, claim: Claim) -> None:
        """Use `create_or_resume`."""
        state = claim.state
        self.target = target
        self.oid = state.oid
        self.size = state.size
        self.fd = claim.fd
        self.have = Bitfield(state.pieces)
        self.candidates = Bitfield(state.pieces)  # claimed by an earlier pull, not hashed yet
        self._part_name = state.part
        self._state_name = state_name_of(state.part)
        self._state = replace(state, claimed=b"", records=b"")
        self._state_fd = claim.state_fd
        self._directory_fd = os.dup(directory_fd)
        self._lock = threading.Lock()
        self._is_changed = False
        self._begin(manifest)

    def _begin(self, manifest: Manifest | None) -> None:
        """Under this manifest nothing is known of parts yet."""
        self.manifest = manifest
        self.proofs = ChunkProofs(manifest) if manifest is not None else None
        self._begun = Bitfield(manifest.parts.count if manifest is not None else 0)
        """Parts of which records tell."""
        self._records = bytearray()
        self._records_saved = 0

    def _proofs_known(self) -> ChunkProofs:
        assert self.proofs is not None, "without a manifest there are no parts"
        return self.proofs

    @classmethod
    def create_or_resume(
        cls,
        target: Path,
        manifest: Manifest | None,
        *,
        root: Root,
        oid: Oid | None = None,
        size: int | None = None,
    ) -> Self:
        """Takes over an abandoned partial of this target and blob, or makes a new one.

        After a resume `candidates` are the pieces to pass through `recheck`; `have` is empty until then.

        Args:
            manifest: None when nobody has one; then bytes are appended in order, and `oid` must be given.
            size: of the blob in bytes, where known without a manifest.

        Raises:
            SpaceError: the file system has not enough room.
            PolicyError: the target is something that is never replaced.
        """
        subject = manifest.oid if manifest is not None else oid
        assert subject is not None
        wanted = PartialState.of(
            subject, manifest.size if manifest is not None else size or 0, manifest, "", root.owner()
        )
        target = target.absolute()
        check_target(target)
        with map_os_errors(f"cannot write beside {str(target)!r}"):
            register_directory(root, target.parent)
            directory_fd = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                claim = claim_abandoned(target, directory_fd, wanted)
                if claim is None:
                    return cls._create(target, manifest, directory_fd, wanted)
                return cls._resume(target, manifest, directory_fd, claim)
            finally:
                os.close(directory_fd)

    @classmethod
    def _create(
        cls, target: Path, manifest: Manifest | None, directory_fd: int, wanted: PartialState
    ) -> Self:
        part, state_name = part_names(target, wanted.oid)
        state = replace(wanted, part=part)
        write_state(target.parent / state_name, state)
        state_fd = os.open(state_name, os.O_RDWR | os.O_CLOEXEC, dir_fd=directory_fd)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(part, flags, 0o666, dir_fd=directory_fd)
        partial = cls(target, manifest, directory_fd, Claim(fd, state_fd, state))
        try:
            partial.allocate()
        except BaseException:
            partial.discard()
            raise
        return partial

    @classmethod
    def _resume(cls, target: Path, manifest: Manifest | None, directory_fd: int, claim: Claim) -> Self:
        partial = cls(target, manifest, directory_fd, claim)
        partial.candidates = claim.state.bits()
        partial._read_records(claim.state.records)
        try:
            partial.allocate()
        except BaseException:
            partial.close()
            raise
        return partial

    def allocate(self) -> None:
        """Takes the blocks that are still missing; without a manifest nothing is taken (the file grows).

        Raises:
            SpaceError: there are not enough.
        """
        if self.manifest is None:
            return
        if os.fstat(self.fd).st_size > self.size:
            os.ftruncate(self.fd, self.size)
        free = os.fstatvfs(self.fd)
        missing = self.size - os.fstat(self.fd).st_blocks * 512
        available = free.f_bavail * free.f_frsize
        if missing > 0 and missing + min(RESERVE_BYTES, available // 20) > available:
            raise SpaceError(
                f"no space for {str(self.target)!r}: {missing} bytes are needed, {available} are free",
                hint="free some space and run the same command again: it resumes",
            )
        _fallocate(self.fd, self.size)

    def _read_records(self, records: bytes) -> None:
        """Takes up what an earlier pull noted of parts, until it makes no sense."""
        parts = None if self.manifest is None else self.manifest.parts
        if parts is None or parts.are_chunks:
            return
        for run, proof in decode_records(records):
            if not 0 < run.count <= run.end <= parts.count:
                break
            stretch, *others = parts.within_chunks(*run)
            if others or (proof and not self._proofs_known().put(stretch.chunk, proof)):
                break
            self._begun.add(*run)
            self._records += encode_record(run, proof)
        self._records_saved = len(self._records)

    @property
    def path(self) -> Path:
        """Where the bytes are now."""
        return self.target.parent / self._part_name

    @property
    def is_complete(self) -> bool:
        """Whether every piece is verified and written."""
        return self.manifest is not None and self.have.is_full

    # Resuming.

    def recheck(self, *, should_stop: Callable[[], bool] | None = None) -> Iterator[tuple[Run, bool]]:
        """Hashes the candidates, in order, from any thread; yields (run, is_good) and marks the good ones.

        Raises:
            CancelledByUserError: `should_stop` answered True.
        """
        assert self.manifest is not None
        reader = PieceReader(self.fd, self.manifest)
        for run in self.candidates.runs():
            for part, is_good in reader.check(run, should_stop=should_stop):
                with self._lock:
                    self.candidates.remove(*part)
                    self._is_changed = True
                    if is_good:
                        self.have.add(*part)
                yield part, is_good

    def begun(self) -> list[Run]:
        """Parts of chunks that are neither held nor candidates: to pass through `recheck_parts`."""
        if self.manifest is None or not self._begun.count:
            return []
        left = self._begun.copy()
        for run in self._claimed().runs():
            left.remove(*self.manifest.parts.of_chunks(*run))
        return left.runs()

    def recheck_parts(self, runs: Iterable[Run]) -> Iterator[tuple[Run, bool]]:
        """Hashes parts against the proofs of their chunks, from any thread; yields (run, is_good)."""
        assert self.manifest is not None
        parts, proofs = self.manifest.parts, self._proofs_known()
        for stretch in (each for run in runs for each in parts.within_chunks(*run)):
            offset, length = parts.extent(stretch.first, stretch.count)
            is_good = bool(proofs.verifies(stretch, memoryview(os.pread(self.fd, length, offset))))
            if not is_good:
                with self._lock:
                    self._begun.remove(stretch.first, stretch.count)
            yield Run(stretch.first, stretch.count), is_good

    def rehash_prefix(self, progress: Callable[[int], None] | None = None) -> tuple[hashlib._Hash, int]:
        """Without a manifest: the SHA-256 of what was appended so far, and how many bytes that is.

        Args:
            progress: called with bytes hashed; what it raises ends the hashing.
        """
        hasher, offset = hashlib.sha256(), 0
        while block := os.pread(self.fd, 1 << 20, offset):
            hasher.update(block)
            offset += len(block)
            if progress is not None:
                progress(len(block))
        return hasher, offset

    def rebase(self, manifest: Manifest) -> Bitfield:
        """Goes on under another manifest of the same blob; pieces whose bytes were verified stay.

        A piece that both name is kept as it is; one that verified bytes cover in full is hashed in place.

        Returns:
            The pieces of the new manifest that are held.
        """
        assert manifest.oid == self.oid
        with map_os_errors(f"cannot go on with {str(self.path)!r}"):
            fresh = PartialState.of(self.oid, manifest.size, manifest, self._part_name, self._state.owner)
            kept = Bitfield(manifest.piece_count)
            reader = PieceReader(self.fd, manifest)
            for run in self._covered_runs(manifest):
                for part, is_good in reader.check(run):
                    if is_good:
                        kept.add(*part)
            overwrite(self._state_fd, replace(fresh, claimed=kept.to_bytes()))
            with self._lock:
                self._state, self.size = fresh, manifest.size
                self._begin(manifest)
                self.have, self.candidates = kept, Bitfield(manifest.piece_count)
                self._is_changed = False
            self.allocate()
        return kept.copy()

    def _covered_runs(self, new: Manifest) -> list[Run]:
        """Pieces of `new` whose bytes lie in verified pieces or parts of what was fetched so far."""
        from megalfs.core.bitfield import runs_of

        old = self.manifest
        if old is None:
            return [Run(0, new.piece_count)]
        have = old.parts.from_chunks(self.have).bits | self._begun.bits
        offsets = old.parts.offsets
        end = np.uint64(min(old.size, new.size))
        starts, ends = new.offsets[:-1], new.offsets[1:]
        firsts = np.searchsorted(offsets[1:], starts, "right")
        lasts = np.searchsorted(offsets, np.minimum(ends, end), "left")
        held = np.concatenate((np.zeros(1, np.int64), np.cumsum(have, dtype=np.int64)))
        firsts = np.minimum(firsts, lasts)
        is_covered = (held[lasts] - held[firsts] == lasts - firsts) & (ends <= end)
        return runs_of(is_covered)

    # Writing.

    def write(self, offset: int, buffer: bytes | bytearray | memoryview) -> None:
        """Writes verified bytes. `mark` their pieces afterwards.

        Raises:
            SpaceError: the disk or a quota is full; what was marked stays for a resume.
        """
        with map_os_errors(f"cannot write {str(self.path)!r}"):
            write_all(self.fd, buffer, offset)

    def mark(self, first: int, count: int) -> int:
        """Notes that pieces are verified and written; returns how many of them are new."""
        with self._lock:
            self._is_changed = True
            return self.have.add(first, count)

    def mark_parts(self, stretch: Stretch) -> None:
        """Notes that parts of a chunk, whose proof is known, are verified and written."""
        assert self.manifest is not None
        run, proof = Run(stretch.first, stretch.count), self._proofs_known().get(stretch.chunk)
        assert proof is not None
        with self._lock:
            if not self._begun.has_all(*run):
                is_noted = self._begun.has_any(*self.manifest.parts.of_chunks(stretch.chunk, 1))
                self._begun.add(*run)
                self._records += encode_record(run, b"" if is_noted else proof)

    def flush(self) -> None:
        """Saves what is marked, and the heartbeat; the driver calls it every 200 ms or so.

        Raises:
            BusyError: another machine believed this process dead and took the partial over.
        """
        with self._lock:
            bits = self._claimed() if self._is_changed else None
            self._is_changed = False
            saved, self._records_saved = self._records_saved, len(self._records)
            records = bytes(self._records[saved:])
        with map_os_errors(f"cannot save the progress of {str(self.target)!r}"):
            if not self._is_ours():
                raise BusyError(f"another megalfs took over the pull of {str(self.target)!r}")
            if records:
                append_records(self._state_fd, self._state.pieces, saved, records)
            if bits is None:
                os.utime(self._state_fd)
            else:
                save_bits(self._state_fd, bits)

    def _claimed(self) -> Bitfield:
        """What the next pull should look at: what is verified, and what this one had no time to look at."""
        claimed = self.have.copy()
        claimed.bits |= self.candidates.bits
        return claimed

    def _is_ours(self) -> bool:
        try:
            found = os.stat(self._state_name, dir_fd=self._directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return found.st_ino == os.fstat(self._state_fd).st_ino

    # Ending.

    def commit(self, *, replace: bool, executable: bool = False, durable: bool = True) -> Identity:
        """Gives the whole, proven file its name. The caller proved the SHA-256.

        Args:
            replace: cover a regular file that stands there.
            executable: set the x bits beside the r bits.
            durable: bytes and name survive a power cut from now on (fdatasync and fsync of the directory).

        Returns:
            The identity of the file under its name.

        Raises:
            PolicyError: something stands there that must not be replaced.
        """
        check_target(self.target)
        with map_os_errors(f"cannot finish {str(self.target)!r}"):
            if executable:
                mode = stat.S_IMODE(os.fstat(self.fd).st_mode)
                os.fchmod(self.fd, mode_with_x(mode, is_executable=True))
            if durable:
                os.fsync(self.fd) if sys.platform == "darwin" else os.fdatasync(self.fd)
            give_name(self._part_name, self.target, replace=replace, dir_fd=self._directory_fd)
            if durable:
                fsync_dir(self.target.parent)
            with suppress(FileNotFoundError):
                os.unlink(self._state_name, dir_fd=self._directory_fd)
            identity = Identity.of_fd(self.fd)
        self.close()
        return identity

    def discard(self) -> None:
        """Removes the partial and its sidecar."""
        for name in (self._part_name, self._state_name):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory_fd)
        self.close()

    def close(self) -> None:
        """Saves what is marked and closes the files; anybody may resume from now on, this process too."""
        if self.fd < 0:
            return
        with suppress(OSError):
            if self._is_ours():
                nobody = replace(self._state.owner, pid=0)
                claimed, records = self._claimed().to_bytes(), bytes(self._records)
                overwrite(
                    self._state_fd, replace(self._state, owner=nobody, claimed=claimed, records=records)
                )
        for fd in (self._state_fd, self.fd, self._directory_fd):
            os.close(fd)
        self.fd = self._state_fd = self._directory_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _fallocate(fd: int, size: int) -> None:
    """Allocates without glibc's emulation, which writes every block where the file system cannot allocate."""
    if sys.platform.startswith("linux"):
        import ctypes
        import errno

        libc = ctypes.CDLL(None, use_errno=True)
        c_off = ctypes.c_int64
        if libc.fallocate(fd, 0, c_off(0), c_off(size)) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise OSError(code, os.strerror(code))
    if os.fstat(fd).st_size != size:
        os.ftruncate(fd, size)


def register_directory(root: Root, directory: Path) -> None:
    """Remembers that partials may lie in `directory`."""
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    path = root.partials / name
    if not path.exists():
        write_atomic(path, os.fsencode(directory))
