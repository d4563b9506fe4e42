import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from sfic.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Estimate(_message.Message):
    __slots__ = ("value", "confidence")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    value: float
    confidence: float
    def __init__(self, value: _Optional[float] = ..., confidence: _Optional[float] = ...) -> None: ...

class FaceAnalysis(_message.Message):
    __slots__ = ("face", "embedding", "embedding_confidence", "age", "gender", "smile", "yaw", "pitch", "roll", "landmarks", "landmarks_confidence", "analysed_time")
    FACE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    GENDER_FIELD_NUMBER: _ClassVar[int]
    SMILE_FIELD_NUMBER: _ClassVar[int]
    YAW_FIELD_NUMBER: _ClassVar[int]
    PITCH_FIELD_NUMBER: _ClassVar[int]
    ROLL_FIELD_NUMBER: _ClassVar[int]
    LANDMARKS_FIELD_NUMBER: _ClassVar[int]
    LANDMARKS_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ANALYSED_TIME_FIELD_NUMBER: _ClassVar[int]
    face: _common_pb2.FaceInfo
    embedding: _containers.RepeatedScalarFieldContainer[float]
    embedding_confidence: float
    age: Estimate
    gender: Estimate
    smile: Estimate
    yaw: Estimate
    pitch: Estimate
    roll: Estimate
    landmarks: _containers.RepeatedScalarFieldContainer[float]
    landmarks_confidence: float
    analysed_time: _timestamp_pb2.Timestamp
    def __init__(self, face: _Optional[_Union[_common_pb2.FaceInfo, _Mapping]] = ..., embedding: _Optional[_Iterable[float]] = ..., embedding_confidence: _Optional[float] = ..., age: _Optional[_Union[Estimate, _Mapping]] = ..., gender: _Optional[_Union[Estimate, _Mapping]] = ..., smile: _Optional[_Union[Estimate, _Mapping]] = ..., yaw: _Optional[_Union[Estimate, _Mapping]] = ..., pitch: _Optional[_Union[Estimate, _Mapping]] = ..., roll: _Optional[_Union[Estimate, _Mapping]] = ..., landmarks: _Optional[_Iterable[float]] = ..., landmarks_confidence: _Optional[float] = ..., analysed_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SubscribeResultsRequest(_message.Message):
    __slots__ = ("camera_ids", "after_cursor", "live_only", "min_face_score")
    CAMERA_IDS_FIELD_NUMBER: _ClassVar[int]
    AFTER_CURSOR_FIELD_NUMBER: _ClassVar[int]
    LIVE_ONLY_FIELD_NUMBER: _ClassVar[int]
    MIN_FACE_SCORE_FIELD_NUMBER: _ClassVar[int]
    camera_ids: _containers.RepeatedScalarFieldContainer[str]
    after_cursor: int
    live_only: bool
    min_face_score: float
    def __init__(self, camera_ids: _Optional[_Iterable[str]] = ..., after_cursor: _Optional[int] = ..., live_only: _Optional[bool] = ..., min_face_score: _Optional[float] = ...) -> None: ...

class SubscribeResultsResponse(_message.Message):
    __slots__ = ("cursor", "analysis", "results_missed")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    ANALYSIS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_MISSED_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    analysis: FaceAnalysis
    results_missed: int
    def __init__(self, cursor: _Optional[int] = ..., analysis: _Optional[_Union[FaceAnalysis, _Mapping]] = ..., results_missed: _Optional[int] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("min", "max")
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    min: float
    max: float
    def __init__(self, min: _Optional[float] = ..., max: _Optional[float] = ...) -> None: ...

class SearchFacesRequest(_message.Message):
    __slots__ = ("face_id", "basic", "camera_ids", "captured_from", "captured_until", "age", "gender", "smile", "min_face_score", "min_similarity", "limit")
    FACE_ID_FIELD_NUMBER: _ClassVar[int]
    BASIC_FIELD_NUMBER: _ClassVar[int]
    CAMERA_IDS_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_FROM_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    GENDER_FIELD_NUMBER: _ClassVar[int]
    SMILE_FIELD_NUMBER: _ClassVar[int]
    MIN_FACE_SCORE_FIELD_NUMBER: _ClassVar[int]
    MIN_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    face_id: str
    basic: bytes
    camera_ids: _containers.RepeatedScalarFieldContainer[str]
    captured_from: _timestamp_pb2.Timestamp
    captured_until: _timestamp_pb2.Timestamp
    age: Range
    gender: Range
    smile: Range
    min_face_score: float
    min_similarity: float
    limit: int
    def __init__(self, face_id: _Optional[str] = ..., basic: _Optional[bytes] = ..., camera_ids: _Optional[_Iterable[str]] = ..., captured_from: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., captured_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., age: _Optional[_Union[Range, _Mapping]] = ..., gender: _Optional[_Union[Range, _Mapping]] = ..., smile: _Optional[_Union[Range, _Mapping]] = ..., min_face_score: _Optional[float] = ..., min_similarity: _Optional[float] = ..., limit: _Optional[int] = ...) -> None: ...

class SearchFacesResponse(_message.Message):
    __slots__ = ("hits",)
    class Hit(_message.Message):
        __slots__ = ("analysis", "similarity")
        ANALYSIS_FIELD_NUMBER: _ClassVar[int]
        SIMILARITY_FIELD_NUMBER: _ClassVar[int]
        analysis: FaceAnalysis
        similarity: float
        def __init__(self, analysis: _Optional[_Union[FaceAnalysis, _Mapping]] = ..., similarity: _Optional[float] = ...) -> None: ...
    HITS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[SearchFacesResponse.Hit]
    def __init__(self, hits: _Optional[_Iterable[_Union[SearchFacesResponse.Hit, _Mapping]]] = ...) -> None: ...
