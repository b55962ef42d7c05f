"""Costs, in tables and figures: kernels' registers and machine code, networks' operations."""
