"""Speed of mulfree_cupy compared with other libraries: `python -m benchmarks --help`."""
