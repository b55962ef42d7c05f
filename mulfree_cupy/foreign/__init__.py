"""Import of networks from untrusted files of other programs."""

from mulfree_cupy.foreign.resnets import imported
from mulfree_cupy.foreign.state_dicts import read

__all__ = ["imported", "read"]
