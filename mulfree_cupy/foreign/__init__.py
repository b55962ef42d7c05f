"""Networks that other programs trained: their files read without trust, and fitted into ours."""

from mulfree_cupy.foreign.resnets import imported
from mulfree_cupy.foreign.state_dicts import read

__all__ = ["imported", "read"]
