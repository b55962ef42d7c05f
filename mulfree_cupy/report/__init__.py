"""What things cost, in tables: kernels' registers and machine code, networks' operations."""
