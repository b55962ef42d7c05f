import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # problems.py and rehearsal/

import rehearsal
from rehearsal import shapes

collect_ignore = ["rehearsal"]  # files for processes of their own

if rehearsal.active():
    shapes.compare_shapes_only()

# An emulated example may compile a kernel, so examples have no deadline.
hypothesis.settings.register_profile("default", deadline=None, max_examples=60, print_blob=True)
hypothesis.settings.load_profile("default")

# A shell's background job starts with Ctrl-C ignored; the tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory):
    """Compiled kernels go to a folder of the test run, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        if "MULFREE_CACHE_DIR" not in os.environ:
            patch.setenv("MULFREE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cupy():
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("no GPU")
    return cupy


def pytest_collection_modifyitems(items):
    if rehearsal.active():
        shapes.skip_what_needs_values(items)
