"""Cutting ONNX files: same numbers, fewer nodes, typed errors on anything else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfic.errors import BundleError
from sfic.locations import models_dir
from sfic.onnx_outputs import keep_outputs, output_names
from sfic.runtime import make_session

HEADS = models_dir() / "heads.onnx"


def test_a_cut_graph_gives_the_same_numbers() -> None:
    model = HEADS.read_bytes()
    names = output_names(model)
    assert {"embedding", "age"} <= set(names)
    whole = make_session(model)
    basic = np.random.default_rng(0).normal(size=(3, whole.get_inputs()[0].shape[1]))
    inputs = {"basic": basic.astype(np.float32)}
    for name in names:
        cut = keep_outputs(model, {name})
        assert output_names(cut) == [name]
        np.testing.assert_allclose(
            make_session(cut).run([name], inputs)[0], whole.run([name], inputs)[0], atol=1e-6
        )


def test_weights_that_nothing_needs_are_left_out() -> None:
    model = HEADS.read_bytes()
    assert len(keep_outputs(model, {"age"})) < 0.7 * len(model)


def test_an_output_that_is_not_there() -> None:
    with pytest.raises(BundleError, match="no output"):
        keep_outputs(HEADS.read_bytes(), {"nothing"})


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        keep_outputs(data, {"image"})


@given(st.integers(1, 4000))
def test_a_cut_file_is_refused(size: int) -> None:
    with pytest.raises(BundleError):
        keep_outputs(HEADS.read_bytes()[:size], {"embedding"})


def test_a_graph_cut_at_both_ends_asks_for_what_is_left() -> None:
    model = (models_dir() / "generator_high.onnx").read_bytes()
    session = make_session(keep_outputs(model, {"image_512"}, given="features_128"))
    assert {node.name for node in session.get_inputs()} == {"styles", "features_128", "row"}
    with pytest.raises(BundleError, match="no output"):
        keep_outputs(model, {"image_512"}, given="features_7")
