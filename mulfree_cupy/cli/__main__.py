"""``python -m mulfree_cupy.cli``."""

import sys

from mulfree_cupy.cli import main

sys.exit(main())
