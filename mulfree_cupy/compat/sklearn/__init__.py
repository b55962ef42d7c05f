"""scikit-learn estimators: networks as classifier and transformer, neighbours by L1 distance."""

from mulfree_cupy.compat.sklearn.neighbors import L1NeighborsTransformer
from mulfree_cupy.compat.sklearn.networks import AdderClassifier, NetworkFeatures

__all__ = ["AdderClassifier", "L1NeighborsTransformer", "NetworkFeatures"]
