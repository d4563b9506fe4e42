import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from sfic.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GrantScope(_message.Message):
    __slots__ = ("face_id", "camera_id", "captured_from", "captured_until")
    FACE_ID_FIELD_NUMBER: _ClassVar[int]
    CAMERA_ID_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_FROM_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    face_id: str
    camera_id: str
    captured_from: _timestamp_pb2.Timestamp
    captured_until: _timestamp_pb2.Timestamp
    def __init__(self, face_id: _Optional[str] = ..., camera_id: _Optional[str] = ..., captured_from: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., captured_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("grant_id", "scope", "highest", "decoder", "purpose", "granted_by", "created_time", "expires_time", "revoked_time")
    GRANT_ID_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_FIELD_NUMBER: _ClassVar[int]
    DECODER_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    GRANTED_BY_FIELD_NUMBER: _ClassVar[int]
    CREATED_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_TIME_FIELD_NUMBER: _ClassVar[int]
    REVOKED_TIME_FIELD_NUMBER: _ClassVar[int]
    grant_id: str
    scope: GrantScope
    highest: _common_pb2.Layer
    decoder: str
    purpose: str
    granted_by: str
    created_time: _timestamp_pb2.Timestamp
    expires_time: _timestamp_pb2.Timestamp
    revoked_time: _timestamp_pb2.Timestamp
    def __init__(self, grant_id: _Optional[str] = ..., scope: _Optional[_Union[GrantScope, _Mapping]] = ..., highest: _Optional[_Union[_common_pb2.Layer, str]] = ..., decoder: _Optional[str] = ..., purpose: _Optional[str] = ..., granted_by: _Optional[str] = ..., created_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., revoked_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CreateGrantRequest(_message.Message):
    __slots__ = ("scope", "highest", "decoder", "purpose", "expires_time")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_FIELD_NUMBER: _ClassVar[int]
    DECODER_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_TIME_FIELD_NUMBER: _ClassVar[int]
    scope: GrantScope
    highest: _common_pb2.Layer
    decoder: str
    purpose: str
    expires_time: _timestamp_pb2.Timestamp
    def __init__(self, scope: _Optional[_Union[GrantScope, _Mapping]] = ..., highest: _Optional[_Union[_common_pb2.Layer, str]] = ..., decoder: _Optional[str] = ..., purpose: _Optional[str] = ..., expires_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CreateGrantResponse(_message.Message):
    __slots__ = ("grant",)
    GRANT_FIELD_NUMBER: _ClassVar[int]
    grant: Grant
    def __init__(self, grant: _Optional[_Union[Grant, _Mapping]] = ...) -> None: ...

class ListGrantsRequest(_message.Message):
    __slots__ = ("include_ended",)
    INCLUDE_ENDED_FIELD_NUMBER: _ClassVar[int]
    include_ended: bool
    def __init__(self, include_ended: _Optional[bool] = ...) -> None: ...

class ListGrantsResponse(_message.Message):
    __slots__ = ("grants",)
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    grants: _containers.RepeatedCompositeFieldContainer[Grant]
    def __init__(self, grants: _Optional[_Iterable[_Union[Grant, _Mapping]]] = ...) -> None: ...

class RevokeGrantRequest(_message.Message):
    __slots__ = ("grant_id",)
    GRANT_ID_FIELD_NUMBER: _ClassVar[int]
    grant_id: str
    def __init__(self, grant_id: _Optional[str] = ...) -> None: ...

class RevokeGrantResponse(_message.Message):
    __slots__ = ("grant",)
    GRANT_FIELD_NUMBER: _ClassVar[int]
    grant: Grant
    def __init__(self, grant: _Optional[_Union[Grant, _Mapping]] = ...) -> None: ...

class ForgetScope(_message.Message):
    __slots__ = ("face_ids", "camera_id", "captured_before")
    FACE_IDS_FIELD_NUMBER: _ClassVar[int]
    CAMERA_ID_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    face_ids: _containers.RepeatedScalarFieldContainer[str]
    camera_id: str
    captured_before: _timestamp_pb2.Timestamp
    def __init__(self, face_ids: _Optional[_Iterable[str]] = ..., camera_id: _Optional[str] = ..., captured_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("scope", "reason")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    scope: ForgetScope
    reason: str
    def __init__(self, scope: _Optional[_Union[ForgetScope, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class ForgetResponse(_message.Message):
    __slots__ = ("faces", "cursor")
    FACES_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    faces: int
    cursor: int
    def __init__(self, faces: _Optional[int] = ..., cursor: _Optional[int] = ...) -> None: ...

class FollowForgottenRequest(_message.Message):
    __slots__ = ("after_cursor", "log_id")
    AFTER_CURSOR_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    after_cursor: int
    log_id: str
    def __init__(self, after_cursor: _Optional[int] = ..., log_id: _Optional[str] = ...) -> None: ...

class FollowForgottenResponse(_message.Message):
    __slots__ = ("log_id", "cursor", "scope", "edge_id", "last_face_cursor")
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    EDGE_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_FACE_CURSOR_FIELD_NUMBER: _ClassVar[int]
    log_id: str
    cursor: int
    scope: ForgetScope
    edge_id: str
    last_face_cursor: int
    def __init__(self, log_id: _Optional[str] = ..., cursor: _Optional[int] = ..., scope: _Optional[_Union[ForgetScope, _Mapping]] = ..., edge_id: _Optional[str] = ..., last_face_cursor: _Optional[int] = ...) -> None: ...

class ReadAuditRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadAuditResponse(_message.Message):
    __slots__ = ("line", "head")
    LINE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    line: str
    head: str
    def __init__(self, line: _Optional[str] = ..., head: _Optional[str] = ...) -> None: ...
