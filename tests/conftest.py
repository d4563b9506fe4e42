"""What tests share: options and fixtures of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog
from numpy.typing import NDArray

from sfic.compiled import FOLDER_VARIABLE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        help="write the pinned bitstreams of tests/golden anew",
    )


@pytest.fixture(scope="session", autouse=True)
def _compiled_networks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the services that they start, share a folder, and leave the user's alone."""
    patch = pytest.MonkeyPatch()
    if FOLDER_VARIABLE not in os.environ:
        patch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("compiled")))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _fresh_logging() -> Iterator[None]:
    """A command or service that a test ran in this process wrote to a stream that is closed now."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def rewrite_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written, not only compared."""
    return bool(request.config.getoption("--rewrite-golden"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Directory of the shared data (pictures that may not be committed); skips where it is not."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    directory = Path(os.environ.get("SFIC_SHARED", beside))
    if not (directory / "data").is_dir():
        pytest.skip("shared data is not here: set SFIC_SHARED")
    return directory


@pytest.fixture
def astronaut() -> NDArray[np.uint8]:
    """The demo's photograph, uint8 RGB [512, 512, 3]: one face, looking at the camera."""
    from sfic.locations import demo_photograph
    from sfic.pictures import read_picture

    return read_picture(demo_photograph())
