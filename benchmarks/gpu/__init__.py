"""GPU benchmarks: checked on the device, timed, and recorded row by row.

`run` schedules the sections and starts each as a separate process (`process`), so that a device
fault costs only one row. A section makes `cases.Case` objects; `cases` checks and times them.
"""
