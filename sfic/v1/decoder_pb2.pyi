from sfic.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PictureFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PICTURE_FORMAT_UNSPECIFIED: _ClassVar[PictureFormat]
    PICTURE_FORMAT_PNG: _ClassVar[PictureFormat]
    PICTURE_FORMAT_JPEG: _ClassVar[PictureFormat]
    PICTURE_FORMAT_RAW_RGB8: _ClassVar[PictureFormat]
PICTURE_FORMAT_UNSPECIFIED: PictureFormat
PICTURE_FORMAT_PNG: PictureFormat
PICTURE_FORMAT_JPEG: PictureFormat
PICTURE_FORMAT_RAW_RGB8: PictureFormat

class ReconstructRequest(_message.Message):
    __slots__ = ("face_id", "highest", "final_only", "size", "format", "paste_back", "frame", "purpose", "on_behalf_of")
    FACE_ID_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_FIELD_NUMBER: _ClassVar[int]
    FINAL_ONLY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    PASTE_BACK_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    ON_BEHALF_OF_FIELD_NUMBER: _ClassVar[int]
    face_id: str
    highest: _common_pb2.Layer
    final_only: bool
    size: int
    format: PictureFormat
    paste_back: bool
    frame: bytes
    purpose: str
    on_behalf_of: str
    def __init__(self, face_id: _Optional[str] = ..., highest: _Optional[_Union[_common_pb2.Layer, str]] = ..., final_only: _Optional[bool] = ..., size: _Optional[int] = ..., format: _Optional[_Union[PictureFormat, str]] = ..., paste_back: _Optional[bool] = ..., frame: _Optional[bytes] = ..., purpose: _Optional[str] = ..., on_behalf_of: _Optional[str] = ...) -> None: ...

class ReconstructResponse(_message.Message):
    __slots__ = ("level", "width", "height", "format", "picture", "face", "layer_bytes", "fetched_bytes", "fetch_ms", "decode_ms", "synthesis_ms", "frame", "frame_width", "frame_height", "provider")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    FACE_FIELD_NUMBER: _ClassVar[int]
    LAYER_BYTES_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FETCH_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    SYNTHESIS_MS_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    FRAME_WIDTH_FIELD_NUMBER: _ClassVar[int]
    FRAME_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    level: _common_pb2.Layer
    width: int
    height: int
    format: PictureFormat
    picture: bytes
    face: _common_pb2.FaceInfo
    layer_bytes: int
    fetched_bytes: int
    fetch_ms: float
    decode_ms: float
    synthesis_ms: float
    frame: bytes
    frame_width: int
    frame_height: int
    provider: str
    def __init__(self, level: _Optional[_Union[_common_pb2.Layer, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., format: _Optional[_Union[PictureFormat, str]] = ..., picture: _Optional[bytes] = ..., face: _Optional[_Union[_common_pb2.FaceInfo, _Mapping]] = ..., layer_bytes: _Optional[int] = ..., fetched_bytes: _Optional[int] = ..., fetch_ms: _Optional[float] = ..., decode_ms: _Optional[float] = ..., synthesis_ms: _Optional[float] = ..., frame: _Optional[bytes] = ..., frame_width: _Optional[int] = ..., frame_height: _Optional[int] = ..., provider: _Optional[str] = ...) -> None: ...

class GetDecoderInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetDecoderInfoResponse(_message.Message):
    __slots__ = ("model_bundle", "provider", "threads", "version", "edge")
    MODEL_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EDGE_FIELD_NUMBER: _ClassVar[int]
    model_bundle: str
    provider: str
    threads: int
    version: str
    edge: str
    def __init__(self, model_bundle: _Optional[str] = ..., provider: _Optional[str] = ..., threads: _Optional[int] = ..., version: _Optional[str] = ..., edge: _Optional[str] = ...) -> None: ...
