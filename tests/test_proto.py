"""The contracts: stubs fit the protos, and no change breaks what clients in the field speak."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).parent.parent
BASELINE = ROOT / "proto" / "sfic.v1.binpb"
PROTOS = sorted(path.relative_to(ROOT / "proto") for path in (ROOT / "proto").rglob("*.proto"))


def compile_protos(target: Path) -> descriptor_pb2.FileDescriptorSet:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    include = Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{include}", "--include_imports"]
    code = protoc.main([*arguments, f"--descriptor_set_out={target}", *map(str, PROTOS)])
    assert code == 0
    return descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())


def flatten(files: descriptor_pb2.FileDescriptorSet) -> dict[str, Any]:
    """Everything with a full name: messages, enums, services."""

    def messages(prefix: str, items: Any) -> Iterator[tuple[str, Any]]:
        for item in items:
            name = f"{prefix}.{item.name}"
            yield name, item
            yield from messages(name, item.nested_type)
            yield from ((f"{name}.{enum.name}", enum) for enum in item.enum_type)

    found: dict[str, Any] = {}
    for file in files.file:
        if file.package == "sfic.v1":
            found.update(messages(file.package, file.message_type))
            found.update((f"{file.package}.{e.name}", e) for e in file.enum_type)
            found.update((f"{file.package}.{s.name}", s) for s in file.service)
    return found


def breaks(
    old: descriptor_pb2.FileDescriptorSet, new: descriptor_pb2.FileDescriptorSet
) -> list[str]:
    """What of `old` a peer that speaks `new` would misread."""
    problems = []
    after = flatten(new)
    for name, item in flatten(old).items():
        if name not in after:
            problems.append(f"{name} is gone")
        elif isinstance(item, descriptor_pb2.DescriptorProto):
            problems += _changed_fields(name, item, after[name])
        elif isinstance(item, descriptor_pb2.EnumDescriptorProto):
            now = {value.number: value.name for value in after[name].value}
            problems += [
                f"{name}.{value.name} changed"
                for value in item.value
                if now.get(value.number) != value.name
            ]
        else:
            now = {method.name: method for method in after[name].method}
            problems += [
                f"{name}.{method.name} changed"
                for method in item.method
                if now.get(method.name) != method
            ]
    return problems


def _changed_fields(name: str, old: Any, new: Any) -> list[str]:
    now = {field.number: field for field in new.field}
    reserved = {n for span in new.reserved_range for n in range(span.start, span.end)}
    problems = []
    for field in old.field:
        same = now.get(field.number)
        if same is None:
            if field.number not in reserved:
                problems.append(f"{name}.{field.name} is gone and its number not reserved")
        elif any(
            getattr(same, part) != getattr(field, part)
            for part in ("name", "type", "type_name", "label", "proto3_optional")
        ) or field.HasField("oneof_index") != same.HasField("oneof_index"):
            problems.append(f"{name}.{field.name} changed")
    return problems


def test_the_wire_is_not_broken(tmp_path: Path) -> None:
    old = descriptor_pb2.FileDescriptorSet.FromString(BASELINE.read_bytes())
    assert len(flatten(old)) > 15
    assert breaks(old, compile_protos(tmp_path / "now.binpb")) == []


def _drop_field(files: Any) -> None:
    del flatten(files)["sfic.v1.LayerPacket"].field[1]


def _change_type(files: Any) -> None:
    flatten(files)["sfic.v1.FaceInfo"].field[
        0
    ].type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES


def _renumber(files: Any) -> None:
    flatten(files)["sfic.v1.FaceInfo"].field[1].number = 77


def _rename_enum_value(files: Any) -> None:
    flatten(files)["sfic.v1.Layer"].value[1].name = "LAYER_LOW"


def _end_streaming(files: Any) -> None:
    flatten(files)["sfic.v1.CloudDecoder"].method[0].server_streaming = False


@pytest.mark.parametrize(
    "damage", [_drop_field, _change_type, _renumber, _rename_enum_value, _end_streaming]
)
def test_each_kind_of_break_is_seen(damage: Callable[[Any], None]) -> None:
    old = descriptor_pb2.FileDescriptorSet.FromString(BASELINE.read_bytes())
    new = descriptor_pb2.FileDescriptorSet.FromString(BASELINE.read_bytes())
    assert breaks(old, new) == []
    damage(new)
    assert len(breaks(old, new)) == 1


def test_adding_a_field_breaks_nothing() -> None:
    old = descriptor_pb2.FileDescriptorSet.FromString(BASELINE.read_bytes())
    new = descriptor_pb2.FileDescriptorSet.FromString(BASELINE.read_bytes())
    flatten(new)["sfic.v1.FaceInfo"].field.add(name="added", number=1000, type=9, label=1)
    assert breaks(old, new) == []


def test_stubs_are_made_from_these_protos(tmp_path: Path) -> None:
    """`make proto` was run after the last change of a .proto."""
    for file in compile_protos(tmp_path / "now.binpb").file:
        if file.package == "sfic.v1":
            name = file.name.removesuffix(".proto").replace("/", ".") + "_pb2"
            module = importlib.import_module(name)
            stub = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
            new, old = (descriptor_pb2.FileDescriptorSet(file=[f]) for f in (file, stub))
            assert breaks(old, new) == [] and breaks(new, old) == [], file.name
