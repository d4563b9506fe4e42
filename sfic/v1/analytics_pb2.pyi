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

class ResultStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESULT_STATUS_UNSPECIFIED: _ClassVar[ResultStatus]
    RESULT_STATUS_KNOWN: _ClassVar[ResultStatus]
    RESULT_STATUS_UNKNOWN: _ClassVar[ResultStatus]
RESULT_STATUS_UNSPECIFIED: ResultStatus
RESULT_STATUS_KNOWN: ResultStatus
RESULT_STATUS_UNKNOWN: ResultStatus

class Estimate(_message.Message):
    __slots__ = ("value", "confidence")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    value: float
    confidence: float
    def __init__(self, value: _Optional[float] = ..., confidence: _Optional[float] = ...) -> None: ...

class FaceAnalysis(_message.Message):
    __slots__ = ("face", "embedding", "embedding_confidence", "age", "gender", "smile", "yaw", "pitch", "roll", "landmarks", "landmarks_confidence", "analysed_time", "status", "face_score", "visit_id", "expression", "glasses", "eyes_open", "mouth_open", "areas", "parsing", "facial_hair")
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
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FACE_SCORE_FIELD_NUMBER: _ClassVar[int]
    VISIT_ID_FIELD_NUMBER: _ClassVar[int]
    EXPRESSION_FIELD_NUMBER: _ClassVar[int]
    GLASSES_FIELD_NUMBER: _ClassVar[int]
    EYES_OPEN_FIELD_NUMBER: _ClassVar[int]
    MOUTH_OPEN_FIELD_NUMBER: _ClassVar[int]
    AREAS_FIELD_NUMBER: _ClassVar[int]
    PARSING_FIELD_NUMBER: _ClassVar[int]
    FACIAL_HAIR_FIELD_NUMBER: _ClassVar[int]
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
    status: ResultStatus
    face_score: Estimate
    visit_id: str
    expression: Expression
    glasses: Estimate
    eyes_open: Estimate
    mouth_open: Estimate
    areas: _containers.RepeatedScalarFieldContainer[float]
    parsing: bytes
    facial_hair: Estimate
    def __init__(self, face: _Optional[_Union[_common_pb2.FaceInfo, _Mapping]] = ..., embedding: _Optional[_Iterable[float]] = ..., embedding_confidence: _Optional[float] = ..., age: _Optional[_Union[Estimate, _Mapping]] = ..., gender: _Optional[_Union[Estimate, _Mapping]] = ..., smile: _Optional[_Union[Estimate, _Mapping]] = ..., yaw: _Optional[_Union[Estimate, _Mapping]] = ..., pitch: _Optional[_Union[Estimate, _Mapping]] = ..., roll: _Optional[_Union[Estimate, _Mapping]] = ..., landmarks: _Optional[_Iterable[float]] = ..., landmarks_confidence: _Optional[float] = ..., analysed_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., status: _Optional[_Union[ResultStatus, str]] = ..., face_score: _Optional[_Union[Estimate, _Mapping]] = ..., visit_id: _Optional[str] = ..., expression: _Optional[_Union[Expression, _Mapping]] = ..., glasses: _Optional[_Union[Estimate, _Mapping]] = ..., eyes_open: _Optional[_Union[Estimate, _Mapping]] = ..., mouth_open: _Optional[_Union[Estimate, _Mapping]] = ..., areas: _Optional[_Iterable[float]] = ..., parsing: _Optional[bytes] = ..., facial_hair: _Optional[_Union[Estimate, _Mapping]] = ...) -> None: ...

class Expression(_message.Message):
    __slots__ = ("name", "confidence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    confidence: float
    def __init__(self, name: _Optional[str] = ..., confidence: _Optional[float] = ...) -> None: ...

class SubscribeResultsRequest(_message.Message):
    __slots__ = ("camera_ids", "after_cursor", "live_only", "min_face_score", "kept_only", "captured_from", "captured_until")
    CAMERA_IDS_FIELD_NUMBER: _ClassVar[int]
    AFTER_CURSOR_FIELD_NUMBER: _ClassVar[int]
    LIVE_ONLY_FIELD_NUMBER: _ClassVar[int]
    MIN_FACE_SCORE_FIELD_NUMBER: _ClassVar[int]
    KEPT_ONLY_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_FROM_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    camera_ids: _containers.RepeatedScalarFieldContainer[str]
    after_cursor: int
    live_only: bool
    min_face_score: float
    kept_only: bool
    captured_from: _timestamp_pb2.Timestamp
    captured_until: _timestamp_pb2.Timestamp
    def __init__(self, camera_ids: _Optional[_Iterable[str]] = ..., after_cursor: _Optional[int] = ..., live_only: _Optional[bool] = ..., min_face_score: _Optional[float] = ..., kept_only: _Optional[bool] = ..., captured_from: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., captured_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("face_id", "basic", "picture", "embedding", "camera_ids", "captured_from", "captured_until", "age", "gender", "smile", "min_face_score", "min_similarity", "limit", "page_token")
    FACE_ID_FIELD_NUMBER: _ClassVar[int]
    BASIC_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    CAMERA_IDS_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_FROM_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    GENDER_FIELD_NUMBER: _ClassVar[int]
    SMILE_FIELD_NUMBER: _ClassVar[int]
    MIN_FACE_SCORE_FIELD_NUMBER: _ClassVar[int]
    MIN_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    face_id: str
    basic: bytes
    picture: bytes
    embedding: Embedding
    camera_ids: _containers.RepeatedScalarFieldContainer[str]
    captured_from: _timestamp_pb2.Timestamp
    captured_until: _timestamp_pb2.Timestamp
    age: Range
    gender: Range
    smile: Range
    min_face_score: float
    min_similarity: float
    limit: int
    page_token: str
    def __init__(self, face_id: _Optional[str] = ..., basic: _Optional[bytes] = ..., picture: _Optional[bytes] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., camera_ids: _Optional[_Iterable[str]] = ..., captured_from: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., captured_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., age: _Optional[_Union[Range, _Mapping]] = ..., gender: _Optional[_Union[Range, _Mapping]] = ..., smile: _Optional[_Union[Range, _Mapping]] = ..., min_face_score: _Optional[float] = ..., min_similarity: _Optional[float] = ..., limit: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("values", "model_bundle")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    MODEL_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    model_bundle: str
    def __init__(self, values: _Optional[_Iterable[float]] = ..., model_bundle: _Optional[str] = ...) -> None: ...

class SearchFacesResponse(_message.Message):
    __slots__ = ("hits", "next_page_token")
    class Hit(_message.Message):
        __slots__ = ("analysis", "similarity", "same_person")
        ANALYSIS_FIELD_NUMBER: _ClassVar[int]
        SIMILARITY_FIELD_NUMBER: _ClassVar[int]
        SAME_PERSON_FIELD_NUMBER: _ClassVar[int]
        analysis: FaceAnalysis
        similarity: float
        same_person: float
        def __init__(self, analysis: _Optional[_Union[FaceAnalysis, _Mapping]] = ..., similarity: _Optional[float] = ..., same_person: _Optional[float] = ...) -> None: ...
    HITS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[SearchFacesResponse.Hit]
    next_page_token: str
    def __init__(self, hits: _Optional[_Iterable[_Union[SearchFacesResponse.Hit, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Visit(_message.Message):
    __slots__ = ("visit_id", "camera_id", "first_time", "last_time", "faces", "best_face_id", "best_face_score")
    VISIT_ID_FIELD_NUMBER: _ClassVar[int]
    CAMERA_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_TIME_FIELD_NUMBER: _ClassVar[int]
    FACES_FIELD_NUMBER: _ClassVar[int]
    BEST_FACE_ID_FIELD_NUMBER: _ClassVar[int]
    BEST_FACE_SCORE_FIELD_NUMBER: _ClassVar[int]
    visit_id: str
    camera_id: str
    first_time: _timestamp_pb2.Timestamp
    last_time: _timestamp_pb2.Timestamp
    faces: int
    best_face_id: str
    best_face_score: float
    def __init__(self, visit_id: _Optional[str] = ..., camera_id: _Optional[str] = ..., first_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., faces: _Optional[int] = ..., best_face_id: _Optional[str] = ..., best_face_score: _Optional[float] = ...) -> None: ...

class ListVisitsRequest(_message.Message):
    __slots__ = ("camera_ids", "seen_from", "seen_until", "min_faces", "limit", "page_token")
    CAMERA_IDS_FIELD_NUMBER: _ClassVar[int]
    SEEN_FROM_FIELD_NUMBER: _ClassVar[int]
    SEEN_UNTIL_FIELD_NUMBER: _ClassVar[int]
    MIN_FACES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    camera_ids: _containers.RepeatedScalarFieldContainer[str]
    seen_from: _timestamp_pb2.Timestamp
    seen_until: _timestamp_pb2.Timestamp
    min_faces: int
    limit: int
    page_token: str
    def __init__(self, camera_ids: _Optional[_Iterable[str]] = ..., seen_from: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., seen_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., min_faces: _Optional[int] = ..., limit: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListVisitsResponse(_message.Message):
    __slots__ = ("visits", "next_page_token")
    VISITS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    visits: _containers.RepeatedCompositeFieldContainer[Visit]
    next_page_token: str
    def __init__(self, visits: _Optional[_Iterable[_Union[Visit, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Watchlist(_message.Message):
    __slots__ = ("watchlist_id", "purpose", "threshold", "camera_ids", "created_time", "entries", "false_match_rate", "false_non_match_rate")
    WATCHLIST_ID_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    CAMERA_IDS_FIELD_NUMBER: _ClassVar[int]
    CREATED_TIME_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    FALSE_MATCH_RATE_FIELD_NUMBER: _ClassVar[int]
    FALSE_NON_MATCH_RATE_FIELD_NUMBER: _ClassVar[int]
    watchlist_id: str
    purpose: str
    threshold: float
    camera_ids: _containers.RepeatedScalarFieldContainer[str]
    created_time: _timestamp_pb2.Timestamp
    entries: int
    false_match_rate: float
    false_non_match_rate: float
    def __init__(self, watchlist_id: _Optional[str] = ..., purpose: _Optional[str] = ..., threshold: _Optional[float] = ..., camera_ids: _Optional[_Iterable[str]] = ..., created_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., entries: _Optional[int] = ..., false_match_rate: _Optional[float] = ..., false_non_match_rate: _Optional[float] = ...) -> None: ...

class WatchlistEntry(_message.Message):
    __slots__ = ("watchlist_id", "entry_id", "label", "threshold", "expires_time", "created_time", "outdated")
    WATCHLIST_ID_FIELD_NUMBER: _ClassVar[int]
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_TIME_FIELD_NUMBER: _ClassVar[int]
    CREATED_TIME_FIELD_NUMBER: _ClassVar[int]
    OUTDATED_FIELD_NUMBER: _ClassVar[int]
    watchlist_id: str
    entry_id: str
    label: str
    threshold: float
    expires_time: _timestamp_pb2.Timestamp
    created_time: _timestamp_pb2.Timestamp
    outdated: bool
    def __init__(self, watchlist_id: _Optional[str] = ..., entry_id: _Optional[str] = ..., label: _Optional[str] = ..., threshold: _Optional[float] = ..., expires_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., created_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., outdated: _Optional[bool] = ...) -> None: ...

class PutWatchlistRequest(_message.Message):
    __slots__ = ("watchlist",)
    WATCHLIST_FIELD_NUMBER: _ClassVar[int]
    watchlist: Watchlist
    def __init__(self, watchlist: _Optional[_Union[Watchlist, _Mapping]] = ...) -> None: ...

class PutWatchlistResponse(_message.Message):
    __slots__ = ("watchlist",)
    WATCHLIST_FIELD_NUMBER: _ClassVar[int]
    watchlist: Watchlist
    def __init__(self, watchlist: _Optional[_Union[Watchlist, _Mapping]] = ...) -> None: ...

class ListWatchlistsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWatchlistsResponse(_message.Message):
    __slots__ = ("watchlists",)
    WATCHLISTS_FIELD_NUMBER: _ClassVar[int]
    watchlists: _containers.RepeatedCompositeFieldContainer[Watchlist]
    def __init__(self, watchlists: _Optional[_Iterable[_Union[Watchlist, _Mapping]]] = ...) -> None: ...

class RemoveWatchlistRequest(_message.Message):
    __slots__ = ("watchlist_id",)
    WATCHLIST_ID_FIELD_NUMBER: _ClassVar[int]
    watchlist_id: str
    def __init__(self, watchlist_id: _Optional[str] = ...) -> None: ...

class RemoveWatchlistResponse(_message.Message):
    __slots__ = ("removed",)
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    removed: bool
    def __init__(self, removed: _Optional[bool] = ...) -> None: ...

class PutWatchlistEntryRequest(_message.Message):
    __slots__ = ("entry", "face_id", "basic", "picture", "embedding")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    FACE_ID_FIELD_NUMBER: _ClassVar[int]
    BASIC_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    entry: WatchlistEntry
    face_id: str
    basic: bytes
    picture: bytes
    embedding: Embedding
    def __init__(self, entry: _Optional[_Union[WatchlistEntry, _Mapping]] = ..., face_id: _Optional[str] = ..., basic: _Optional[bytes] = ..., picture: _Optional[bytes] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ...) -> None: ...

class PutWatchlistEntryResponse(_message.Message):
    __slots__ = ("entry",)
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    entry: WatchlistEntry
    def __init__(self, entry: _Optional[_Union[WatchlistEntry, _Mapping]] = ...) -> None: ...

class ListWatchlistEntriesRequest(_message.Message):
    __slots__ = ("watchlist_id",)
    WATCHLIST_ID_FIELD_NUMBER: _ClassVar[int]
    watchlist_id: str
    def __init__(self, watchlist_id: _Optional[str] = ...) -> None: ...

class ListWatchlistEntriesResponse(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[WatchlistEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[WatchlistEntry, _Mapping]]] = ...) -> None: ...

class RemoveWatchlistEntryRequest(_message.Message):
    __slots__ = ("watchlist_id", "entry_id")
    WATCHLIST_ID_FIELD_NUMBER: _ClassVar[int]
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    watchlist_id: str
    entry_id: str
    def __init__(self, watchlist_id: _Optional[str] = ..., entry_id: _Optional[str] = ...) -> None: ...

class RemoveWatchlistEntryResponse(_message.Message):
    __slots__ = ("removed",)
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    removed: bool
    def __init__(self, removed: _Optional[bool] = ...) -> None: ...

class Alert(_message.Message):
    __slots__ = ("watchlist_id", "entry_id", "label", "face", "visit_id", "similarity", "raised_time")
    WATCHLIST_ID_FIELD_NUMBER: _ClassVar[int]
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    FACE_FIELD_NUMBER: _ClassVar[int]
    VISIT_ID_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    RAISED_TIME_FIELD_NUMBER: _ClassVar[int]
    watchlist_id: str
    entry_id: str
    label: str
    face: _common_pb2.FaceInfo
    visit_id: str
    similarity: float
    raised_time: _timestamp_pb2.Timestamp
    def __init__(self, watchlist_id: _Optional[str] = ..., entry_id: _Optional[str] = ..., label: _Optional[str] = ..., face: _Optional[_Union[_common_pb2.FaceInfo, _Mapping]] = ..., visit_id: _Optional[str] = ..., similarity: _Optional[float] = ..., raised_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SubscribeAlertsRequest(_message.Message):
    __slots__ = ("watchlist_ids", "after_cursor", "live_only", "kept_only")
    WATCHLIST_IDS_FIELD_NUMBER: _ClassVar[int]
    AFTER_CURSOR_FIELD_NUMBER: _ClassVar[int]
    LIVE_ONLY_FIELD_NUMBER: _ClassVar[int]
    KEPT_ONLY_FIELD_NUMBER: _ClassVar[int]
    watchlist_ids: _containers.RepeatedScalarFieldContainer[str]
    after_cursor: int
    live_only: bool
    kept_only: bool
    def __init__(self, watchlist_ids: _Optional[_Iterable[str]] = ..., after_cursor: _Optional[int] = ..., live_only: _Optional[bool] = ..., kept_only: _Optional[bool] = ...) -> None: ...

class SubscribeAlertsResponse(_message.Message):
    __slots__ = ("cursor", "alert")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    ALERT_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    alert: Alert
    def __init__(self, cursor: _Optional[int] = ..., alert: _Optional[_Union[Alert, _Mapping]] = ...) -> None: ...

class FaceFailure(_message.Message):
    __slots__ = ("face", "code", "message", "happened_time")
    FACE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HAPPENED_TIME_FIELD_NUMBER: _ClassVar[int]
    face: _common_pb2.FaceInfo
    code: str
    message: str
    happened_time: _timestamp_pb2.Timestamp
    def __init__(self, face: _Optional[_Union[_common_pb2.FaceInfo, _Mapping]] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., happened_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SharedResult(_message.Message):
    __slots__ = ("edge_cursor", "analysis", "failure")
    EDGE_CURSOR_FIELD_NUMBER: _ClassVar[int]
    ANALYSIS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    edge_cursor: int
    analysis: FaceAnalysis
    failure: FaceFailure
    def __init__(self, edge_cursor: _Optional[int] = ..., analysis: _Optional[_Union[FaceAnalysis, _Mapping]] = ..., failure: _Optional[_Union[FaceFailure, _Mapping]] = ...) -> None: ...
