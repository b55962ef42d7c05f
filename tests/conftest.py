import signal
import sys
from pathlib import Path

import hypothesis

sys.path.insert(0, str(Path(__file__).parent))  # spec.py and problems.py

# An emulated example may compile a kernel, so examples have no deadline.
hypothesis.settings.register_profile("default", deadline=None, max_examples=60, print_blob=True)
hypothesis.settings.load_profile("default")

# A shell's background job starts with Ctrl-C ignored, and then the tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
