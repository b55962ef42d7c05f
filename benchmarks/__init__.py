"""Speed of mulfree_cupy beside other libraries: `python -m benchmarks --help`."""
