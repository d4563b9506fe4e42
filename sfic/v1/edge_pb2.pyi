import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from sfic.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RawFrame(_message.Message):
    __slots__ = ("format", "width", "height", "pixels")
    class Format(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FORMAT_UNSPECIFIED: _ClassVar[RawFrame.Format]
        FORMAT_RGB8: _ClassVar[RawFrame.Format]
        FORMAT_BGR8: _ClassVar[RawFrame.Format]
        FORMAT_GRAY8: _ClassVar[RawFrame.Format]
    FORMAT_UNSPECIFIED: RawFrame.Format
    FORMAT_RGB8: RawFrame.Format
    FORMAT_BGR8: RawFrame.Format
    FORMAT_GRAY8: RawFrame.Format
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    format: RawFrame.Format
    width: int
    height: int
    pixels: bytes
    def __init__(self, format: _Optional[_Union[RawFrame.Format, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., pixels: _Optional[bytes] = ...) -> None: ...

class StreamFramesRequest(_message.Message):
    __slots__ = ("camera_id", "frame_number", "capture_time", "encoded", "raw", "rate", "aligned")
    CAMERA_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_NUMBER_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    ALIGNED_FIELD_NUMBER: _ClassVar[int]
    camera_id: str
    frame_number: int
    capture_time: _timestamp_pb2.Timestamp
    encoded: bytes
    raw: RawFrame
    rate: int
    aligned: bool
    def __init__(self, camera_id: _Optional[str] = ..., frame_number: _Optional[int] = ..., capture_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., encoded: _Optional[bytes] = ..., raw: _Optional[_Union[RawFrame, _Mapping]] = ..., rate: _Optional[int] = ..., aligned: _Optional[bool] = ...) -> None: ...

class StreamFramesResponse(_message.Message):
    __slots__ = ("frame_number", "faces", "faces_below_gate", "error", "edge_ms", "frames_in_flight")
    FRAME_NUMBER_FIELD_NUMBER: _ClassVar[int]
    FACES_FIELD_NUMBER: _ClassVar[int]
    FACES_BELOW_GATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    EDGE_MS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    frame_number: int
    faces: _containers.RepeatedCompositeFieldContainer[_common_pb2.FaceInfo]
    faces_below_gate: int
    error: FrameError
    edge_ms: float
    frames_in_flight: int
    def __init__(self, frame_number: _Optional[int] = ..., faces: _Optional[_Iterable[_Union[_common_pb2.FaceInfo, _Mapping]]] = ..., faces_below_gate: _Optional[int] = ..., error: _Optional[_Union[FrameError, _Mapping]] = ..., edge_ms: _Optional[float] = ..., frames_in_flight: _Optional[int] = ...) -> None: ...

class FrameError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("camera_ids", "after_cursor", "live_only", "min_face_score", "sealed", "log_id", "max_faces")
    CAMERA_IDS_FIELD_NUMBER: _ClassVar[int]
    AFTER_CURSOR_FIELD_NUMBER: _ClassVar[int]
    LIVE_ONLY_FIELD_NUMBER: _ClassVar[int]
    MIN_FACE_SCORE_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_FACES_FIELD_NUMBER: _ClassVar[int]
    camera_ids: _containers.RepeatedScalarFieldContainer[str]
    after_cursor: int
    live_only: bool
    min_face_score: float
    sealed: bool
    log_id: str
    max_faces: int
    def __init__(self, camera_ids: _Optional[_Iterable[str]] = ..., after_cursor: _Optional[int] = ..., live_only: _Optional[bool] = ..., min_face_score: _Optional[float] = ..., sealed: _Optional[bool] = ..., log_id: _Optional[str] = ..., max_faces: _Optional[int] = ...) -> None: ...

class SubscribeResponse(_message.Message):
    __slots__ = ("cursor", "face", "basic", "faces_missed", "key", "log_id", "batch")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    FACE_FIELD_NUMBER: _ClassVar[int]
    BASIC_FIELD_NUMBER: _ClassVar[int]
    FACES_MISSED_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    face: _common_pb2.FaceInfo
    basic: bytes
    faces_missed: int
    key: bytes
    log_id: str
    batch: _containers.RepeatedCompositeFieldContainer[SubscribeResponse]
    def __init__(self, cursor: _Optional[int] = ..., face: _Optional[_Union[_common_pb2.FaceInfo, _Mapping]] = ..., basic: _Optional[bytes] = ..., faces_missed: _Optional[int] = ..., key: _Optional[bytes] = ..., log_id: _Optional[str] = ..., batch: _Optional[_Iterable[_Union[SubscribeResponse, _Mapping]]] = ...) -> None: ...

class FetchBasicKeysRequest(_message.Message):
    __slots__ = ("face_ids",)
    FACE_IDS_FIELD_NUMBER: _ClassVar[int]
    face_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, face_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class FetchBasicKeysResponse(_message.Message):
    __slots__ = ("keys", "edge_id")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    EDGE_ID_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    edge_id: str
    def __init__(self, keys: _Optional[_Iterable[bytes]] = ..., edge_id: _Optional[str] = ...) -> None: ...

class FetchLayersRequest(_message.Message):
    __slots__ = ("face_ids", "layers", "sealed")
    FACE_IDS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    face_ids: _containers.RepeatedScalarFieldContainer[str]
    layers: _containers.RepeatedScalarFieldContainer[_common_pb2.Layer]
    sealed: bool
    def __init__(self, face_ids: _Optional[_Iterable[str]] = ..., layers: _Optional[_Iterable[_Union[_common_pb2.Layer, str]]] = ..., sealed: _Optional[bool] = ...) -> None: ...

class FetchLayersResponse(_message.Message):
    __slots__ = ("faces",)
    class Face(_message.Message):
        __slots__ = ("face_id", "found", "info", "layers")
        FACE_ID_FIELD_NUMBER: _ClassVar[int]
        FOUND_FIELD_NUMBER: _ClassVar[int]
        INFO_FIELD_NUMBER: _ClassVar[int]
        LAYERS_FIELD_NUMBER: _ClassVar[int]
        face_id: str
        found: bool
        info: _common_pb2.FaceInfo
        layers: _containers.RepeatedCompositeFieldContainer[_common_pb2.LayerPacket]
        def __init__(self, face_id: _Optional[str] = ..., found: _Optional[bool] = ..., info: _Optional[_Union[_common_pb2.FaceInfo, _Mapping]] = ..., layers: _Optional[_Iterable[_Union[_common_pb2.LayerPacket, _Mapping]]] = ...) -> None: ...
    FACES_FIELD_NUMBER: _ClassVar[int]
    faces: _containers.RepeatedCompositeFieldContainer[FetchLayersResponse.Face]
    def __init__(self, faces: _Optional[_Iterable[_Union[FetchLayersResponse.Face, _Mapping]]] = ...) -> None: ...

class FetchKeysRequest(_message.Message):
    __slots__ = ("face_id", "highest", "on_behalf_of", "purpose")
    FACE_ID_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_FIELD_NUMBER: _ClassVar[int]
    ON_BEHALF_OF_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    face_id: str
    highest: _common_pb2.Layer
    on_behalf_of: str
    purpose: str
    def __init__(self, face_id: _Optional[str] = ..., highest: _Optional[_Union[_common_pb2.Layer, str]] = ..., on_behalf_of: _Optional[str] = ..., purpose: _Optional[str] = ...) -> None: ...

class LayerKey(_message.Message):
    __slots__ = ("layer", "key")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    layer: _common_pb2.Layer
    key: bytes
    def __init__(self, layer: _Optional[_Union[_common_pb2.Layer, str]] = ..., key: _Optional[bytes] = ...) -> None: ...

class FetchKeysResponse(_message.Message):
    __slots__ = ("keys", "refusal", "grant_id")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    GRANT_ID_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[LayerKey]
    refusal: str
    grant_id: str
    def __init__(self, keys: _Optional[_Iterable[_Union[LayerKey, _Mapping]]] = ..., refusal: _Optional[str] = ..., grant_id: _Optional[str] = ...) -> None: ...
