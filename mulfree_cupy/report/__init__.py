"""What kernels cost, in tables: registers and occupancy, and the machine code itself."""
