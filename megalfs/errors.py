"""The error tree: whose fault, whether a retry makes sense, and the exit code.

An error's text is one line that says what, where and what to do; `cli/ui.py` prints it and nothing else.
Missing is not corrupt: they are different classes because the reactions differ (ask the next source, or
ban the one that lied).
"""

__all__ = [
    "BusyError",
    "CancelledByUserError",
    "ConfigError",
    "IntegrityError",
    "LocalProtocolError",
    "MegalfsError",
    "NotAuthorisedError",
    "NotFoundError",
    "OriginRefusedError",
    "PartialError",
    "PolicyError",
    "ProtocolError",
    "RemoteProtocolError",
    "SpaceError",
    "StoreError",
    "TemporaryError",
    "UsageError",
]


class MegalfsError(Exception):
    """Base of everything megalfs raises on purpose.

    Attributes:
        hint: what the user can do about it.
        rejected: of a pull, pieces that came with wrong bytes, by source.
        files: of a pull of several, what is done all the same: oid, path and size of each.
    """

    exit_code = 1
    is_retryable = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.rejected: dict[str, int] = {}
        self.files: list[dict[str, object]] = []


class UsageError(MegalfsError):
    """The caller asked for nonsense."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is unknown or out of range."""


class NotFoundError(MegalfsError):
    """Every source that could be reached says that it does not exist."""

    exit_code = 3


class IntegrityError(MegalfsError):
    """Bytes do not match their id; never retried from the same source."""

    exit_code = 4


class ProtocolError(MegalfsError):
    """Somebody broke a protocol; raise one of the two subclasses."""


class LocalProtocolError(ProtocolError):
    """We tried to send what the protocol forbids: a bug here."""


class RemoteProtocolError(ProtocolError):
    """The other side sent what the protocol forbids: drop it."""

    exit_code = 5


class TemporaryError(MegalfsError):
    """No peers, a time-out, a lost connection: trying again makes sense."""

    exit_code = 5
    is_retryable = True


class SpaceError(MegalfsError):
    """The disk or a quota is full."""

    exit_code = 6


class NotAuthorisedError(MegalfsError):
    """A token or key is missing or wrong."""

    exit_code = 7


class BusyError(MegalfsError):
    """Somebody else holds what we need: a port, a root, a target."""

    exit_code = 8
    is_retryable = True


class PartialError(MegalfsError):
    """Some of several files are done, others are not."""

    exit_code = 9


class PolicyError(MegalfsError):
    """A signature, a sequence number or a policy says no."""

    exit_code = 10


class OriginRefusedError(MegalfsError):
    """The origin answered with a refusal or a limit."""

    exit_code = 11


class StoreError(MegalfsError):
    """The disk did what it should not: an I/O error, a changed file, a damaged index."""


class CancelledByUserError(MegalfsError):
    """SIGINT (130) or SIGTERM (143)."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
