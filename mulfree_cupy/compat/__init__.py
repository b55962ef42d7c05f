"""Functions of other libraries under their own names and conventions."""
