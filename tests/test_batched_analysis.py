"""Many basic layers at once: the same bits as one by one, and errors where they belong."""

from __future__ import annotations

import numpy as np
from service_rig import codec, encoded_faces, other_bundle, spoilt
from services_util import astronaut_pixels

from sfic.analysis import Analysis
from sfic.errors import BundleMismatch, PacketError, SficError
from sfic.face import EncodedFace


def test_batch_says_what_one_by_one_says() -> None:
    """Of several rates, with broken packets in between; each in its place."""
    model, faces = codec(), encoded_faces()
    crop = np.ascontiguousarray(astronaut_pixels()[:256, 128:384])
    good = [face.basic for face in faces] + [model.encode(crop, rate).basic for rate in (1, 9, 5)]
    cut = EncodedFace(faces[2].basic[:-4]).basic
    basics = [
        good[0], spoilt(faces[0]).basic, good[4], good[1], b"\x41", good[5],
        other_bundle(faces[1]).basic, cut, good[2], good[6], good[3], good[0],
    ]  # fmt: skip
    results = model.analyze_batch(basics)
    kinds = [type(result) for result in results]
    assert [kinds[k] for k in (1, 4, 6, 7)] == [
        PacketError, PacketError, BundleMismatch, PacketError,
    ]  # fmt: skip
    for basic, result in zip(basics, results, strict=True):
        if isinstance(result, SficError):
            continue
        alone = model.analyze(basic)
        assert isinstance(result, Analysis)
        np.testing.assert_allclose(result.embedding, alone.embedding, atol=1e-5)
        np.testing.assert_allclose(result.age.value, alone.age.value, rtol=1e-4)


def test_symbols_of_a_batch_are_those_of_each() -> None:
    """To the bit: the network's integers do not depend on who is beside whom."""
    model, faces = codec(), encoded_faces()
    entropy = model._entropy
    expected = [model.decode_symbols(face, "basic")[0].parts["basic"] for face in faces]
    payloads = [face.basic[3:-2] for face in faces]
    for order in ([0, 1, 2, 3], [3, 1], [2], [0, 0, 3, 2, 1, 0, 2]):
        decoded = entropy.decode_basic(5, [payloads[k] for k in order])
        for k, symbols in zip(order, decoded, strict=True):
            assert not isinstance(symbols, PacketError)
            np.testing.assert_array_equal(symbols.parts["basic"], expected[k])
    assert entropy.decode_basic(5, []) == []
    assert model.analyze_batch([]) == []
