"""Everything that needs a GPU: checked on the device, timed, and written down row by row.

`run` plans the sections and starts each as a process of its own (`process`), so that a fault on the
device costs one row. A section makes `cases.Case` objects; `cases` checks and times them.
"""
