"""Settings that every test shares."""

import gc

import pytest
from hypothesis import settings

# A busy machine is not a failure, and a suite that passed should pass again.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


def pytest_addoption(parser):
    parser.addoption("--full-length", action="store_true", help="run the pages of the documentation as they stand")
    parser.addoption("--studio", action="store_true", help="run all tests of the studio, with --soak-minutes of use")
    parser.addoption("--soak-minutes", type=float, default=30, help="how long three users use the studio")
    parser.addoption("--screenshots", default=".cache/studio", help="folder for the pictures of the studio's tabs")


def pytest_collection_modifyitems(config, items):
    """The long tests of the studio run with --studio alone."""
    if not config.getoption("--studio"):
        for item in items:
            if item.get_closest_marker("studio"):
                item.add_marker(pytest.mark.skip(reason="run with --studio, as make test-studio does"))


@pytest.fixture(scope="module", autouse=True)
def quick_collector():
    """Python's garbage collector, which atomtune calls when it gives back memory, need not look through all that was
    imported each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    """The folder of a PixArt-Σ in miniature."""
    from tests.tiny_pixart import save_tiny_pixart

    return str(save_tiny_pixart(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="session")
def other_base(tmp_path_factory) -> str:
    """The same model with other weights."""
    from tests.tiny_pixart import save_tiny_pixart

    return str(save_tiny_pixart(tmp_path_factory.mktemp("other"), seed=1))
