"""What fuzzing found worth keeping: each input again, and a few thousand new ones."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest

from benchmarks.fuzz import CORPUS, Target, run, targets
from sfic.errors import SficError


@pytest.fixture(scope="module")
def all_targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {each.name: each for each in targets(tmp_path_factory.mktemp("fuzz"))}


def test_the_corpus_ends_in_results_or_typed_errors(all_targets: dict[str, Target]) -> None:
    outcomes: dict[str, set[str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(CORPUS.rglob("*.bin")):
            name = path.parent.name.replace("-", " ")
            try:
                all_targets[name].take(path.read_bytes())
                outcome = "taken"
            except SficError as error:
                assert "\n" not in error.message
                outcome = error.code
            outcomes.setdefault(name, set()).add(outcome)
    assert set(outcomes) == set(all_targets)
    assert "taken" in outcomes["picture"] | outcomes["raw frame"]
    assert {"PICTURE_TOO_LARGE", "PICTURE_UNREADABLE"} <= outcomes["picture"]
    assert "PACKET" in outcomes["packet"] and "CONFIG" in outcomes["settings file"]


def test_new_inputs_do_too(all_targets: dict[str, Target]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for target in all_targets.values():
            found = list(run(target, max(20, int(2000 * target.share)), random.Random(target.name)))
            assert found == [], target.name


def test_a_finding_is_told() -> None:
    def take(data: bytes) -> None:
        if b"!" in data:
            raise KeyError("bang")

    fragile = Target("fragile", 1.0, [b"good!"], take)
    found = list(run(fragile, 50, random.Random(1)))
    assert found and all(isinstance(error, KeyError) for _, error in found)
    assert fragile.outcomes["finding"] == len(found)


def test_the_corpus_is_small() -> None:
    files = list(Path(CORPUS).rglob("*.bin"))
    assert 50 < len(files) < 400
    assert sum(path.stat().st_size for path in files) < 1_000_000
