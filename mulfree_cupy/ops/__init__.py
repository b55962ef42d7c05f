"""One module an operation: checks, geometry, then the CPU kernel or the CUDA launcher."""
