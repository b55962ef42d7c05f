"""scikit-learn's estimators: a classifier that trains a network, and features of a trained one."""

from mulfree_cupy.compat.sklearn.networks import AdderClassifier, NetworkFeatures

__all__ = ["AdderClassifier", "NetworkFeatures"]
