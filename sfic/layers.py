"""The three coded layers: their names and their order, lowest first. Nothing about what they
carry."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from sfic.errors import InvalidInput

__all__ = ["LAYERS", "Layer", "as_layer", "highest_first", "layer_index", "lower_layers", "up_to"]

Layer: TypeAlias = Literal["basic", "middle", "enhanced"]

LAYERS: Final[tuple[Layer, ...]] = ("basic", "middle", "enhanced")


def as_layer(name: str) -> Layer:
    """`name` as a layer; InvalidInput, listing the layers, when it is none."""
    for layer in LAYERS:
        if layer == name:
            return layer
    raise InvalidInput(f"unknown layer {name!r}: one of {', '.join(LAYERS)}", layer=str(name))


def layer_index(name: str) -> int:
    """0 for basic, 1 for middle, 2 for enhanced; InvalidInput for any other name."""
    return LAYERS.index(as_layer(name))


def up_to(name: str) -> tuple[Layer, ...]:
    """The layers that decoding `name` needs, itself included, lowest first."""
    return LAYERS[: layer_index(name) + 1]


def lower_layers(name: str) -> tuple[Layer, ...]:
    """The layers below `name`, lowest first."""
    return LAYERS[: layer_index(name)]


def highest_first() -> tuple[Layer, ...]:
    """enhanced, middle, basic: the order in which layers are given up when bytes are short."""
    return LAYERS[::-1]
