"""One module per operation: checks, geometry, then the CPU kernel or the CUDA launcher."""
