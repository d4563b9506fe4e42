import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Layer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LAYER_UNSPECIFIED: _ClassVar[Layer]
    LAYER_BASIC: _ClassVar[Layer]
    LAYER_MIDDLE: _ClassVar[Layer]
    LAYER_ENHANCED: _ClassVar[Layer]
LAYER_UNSPECIFIED: Layer
LAYER_BASIC: Layer
LAYER_MIDDLE: Layer
LAYER_ENHANCED: Layer

class LayerPacket(_message.Message):
    __slots__ = ("layer", "data")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    layer: Layer
    data: bytes
    def __init__(self, layer: _Optional[_Union[Layer, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("crop_to_frame", "frame_width", "frame_height")
    CROP_TO_FRAME_FIELD_NUMBER: _ClassVar[int]
    FRAME_WIDTH_FIELD_NUMBER: _ClassVar[int]
    FRAME_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    crop_to_frame: _containers.RepeatedScalarFieldContainer[float]
    frame_width: int
    frame_height: int
    def __init__(self, crop_to_frame: _Optional[_Iterable[float]] = ..., frame_width: _Optional[int] = ..., frame_height: _Optional[int] = ...) -> None: ...

class FaceInfo(_message.Message):
    __slots__ = ("face_id", "camera_id", "capture_time", "frame_number", "placement", "face_score", "model_bundle", "rate", "layer_bytes", "edge_id", "trace_context", "brightened")
    FACE_ID_FIELD_NUMBER: _ClassVar[int]
    CAMERA_ID_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_FIELD_NUMBER: _ClassVar[int]
    FRAME_NUMBER_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    FACE_SCORE_FIELD_NUMBER: _ClassVar[int]
    MODEL_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    LAYER_BYTES_FIELD_NUMBER: _ClassVar[int]
    EDGE_ID_FIELD_NUMBER: _ClassVar[int]
    TRACE_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    BRIGHTENED_FIELD_NUMBER: _ClassVar[int]
    face_id: str
    camera_id: str
    capture_time: _timestamp_pb2.Timestamp
    frame_number: int
    placement: Placement
    face_score: float
    model_bundle: str
    rate: int
    layer_bytes: _containers.RepeatedScalarFieldContainer[int]
    edge_id: str
    trace_context: str
    brightened: float
    def __init__(self, face_id: _Optional[str] = ..., camera_id: _Optional[str] = ..., capture_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., frame_number: _Optional[int] = ..., placement: _Optional[_Union[Placement, _Mapping]] = ..., face_score: _Optional[float] = ..., model_bundle: _Optional[str] = ..., rate: _Optional[int] = ..., layer_bytes: _Optional[_Iterable[int]] = ..., edge_id: _Optional[str] = ..., trace_context: _Optional[str] = ..., brightened: _Optional[float] = ...) -> None: ...
