"""The one error tree: every failure that a user, a client or an operator can meet.

Each class carries a stable `code` for programs, the gRPC status it becomes on the wire, and the
exit code of the CLI. Nothing else belongs here: messages are written where the error is raised.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AccessDenied",
    "AuditBroken",
    "BundleError",
    "BundleMismatch",
    "CheckpointError",
    "ConfigError",
    "FaceNotKept",
    "FaceTooPoor",
    "FrameTooLarge",
    "InvalidInput",
    "LayerMissing",
    "LimitExceeded",
    "MissingExtra",
    "NoFaceFound",
    "PacketError",
    "PictureTooLarge",
    "PictureUnreadable",
    "ProviderUnavailable",
    "SficError",
    "StorageDamaged",
    "StorageError",
    "Unauthenticated",
    "Unavailable",
    "WatchlistsOff",
]


class SficError(Exception):
    """Root of the tree; also the fallback for what is our own fault."""

    code: ClassVar[str] = "INTERNAL"
    grpc_status: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **details: str) -> None:
        """`message` is one clear line; `details` are named facts for programs."""
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidInput(SficError):
    """What was passed in cannot be used."""

    code = "INVALID_INPUT"
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 2


class PictureUnreadable(InvalidInput):
    """The bytes are not a picture that can be read."""

    code = "PICTURE_UNREADABLE"


class PictureTooLarge(InvalidInput):
    """The picture is over a limit of bytes, pixels or side ratio."""

    code = "PICTURE_TOO_LARGE"


class FrameTooLarge(InvalidInput):
    """A message is over the configured size."""

    code = "FRAME_TOO_LARGE"


class FaceTooPoor(InvalidInput):
    """The face is too poor to be compared with others."""

    code = "FACE_TOO_POOR"


class ConfigError(InvalidInput):
    """The configuration is wrong; the message names the field."""

    code = "CONFIG"


class CheckpointError(InvalidInput):
    """A generator checkpoint is not one that can be loaded."""

    code = "CHECKPOINT"


class PacketError(InvalidInput):
    """A packet is cut, changed, out of order, or not one of ours."""

    code = "PACKET"
    grpc_status = "DATA_LOSS"


class LayerMissing(InvalidInput):
    """A layer was asked for whose lower layers, or itself, are not there."""

    code = "LAYER_MISSING"
    grpc_status = "FAILED_PRECONDITION"


class BundleMismatch(InvalidInput):
    """A packet names a model bundle other than the one loaded."""

    code = "BUNDLE_MISMATCH"
    grpc_status = "FAILED_PRECONDITION"


class BundleError(SficError):
    """The model bundle on disk is incomplete or changed."""

    code = "BUNDLE"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 4


class NoFaceFound(SficError):
    """No face was found in the picture."""

    code = "NO_FACE"
    grpc_status = "NOT_FOUND"
    exit_code = 3


class FaceNotKept(SficError):
    """The face is not, or no longer, kept."""

    code = "FACE_NOT_KEPT"
    grpc_status = "NOT_FOUND"
    exit_code = 3


class LimitExceeded(SficError):
    """A configured limit (queue, faces, clients, time) was reached."""

    code = "LIMIT"
    grpc_status = "RESOURCE_EXHAUSTED"
    exit_code = 5


class Unauthenticated(SficError):
    """The caller did not say who it is, or could not prove it."""

    code = "UNAUTHENTICATED"
    grpc_status = "UNAUTHENTICATED"
    exit_code = 4


class AccessDenied(SficError):
    """The caller is known and may not do this: its role does not, or a grant is missing."""

    code = "ACCESS_DENIED"
    grpc_status = "PERMISSION_DENIED"
    exit_code = 4


class AuditBroken(InvalidInput):
    """A line of an audit log was changed, removed or put in."""

    code = "AUDIT_BROKEN"
    grpc_status = "DATA_LOSS"


class ProviderUnavailable(SficError):
    """The execution provider that was asked for is not there."""

    code = "PROVIDER_UNAVAILABLE"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 4


class MissingExtra(SficError):
    """An optional part of the installation is needed; the message names the extra."""

    code = "MISSING_EXTRA"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 4


class StorageError(SficError):
    """The database cannot be read or written."""

    code = "STORAGE"
    grpc_status = "UNAVAILABLE"
    exit_code = 4


class StorageDamaged(StorageError):
    """What is stored cannot be read: a page on the disk is damaged."""

    code = "STORAGE_DAMAGED"
    grpc_status = "DATA_LOSS"


class Unavailable(SficError):
    """A service that is needed cannot be reached."""

    code = "UNAVAILABLE"
    grpc_status = "UNAVAILABLE"
    exit_code = 4


class WatchlistsOff(SficError):
    """Watchlists are not switched on at this service."""

    code = "WATCHLISTS_OFF"
    grpc_status = "FAILED_PRECONDITION"
    exit_code = 4
