"""The neighbours' transformer: scikit-learn's own, and the estimators that it stands before."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf

sklearn = pytest.importorskip("sklearn", minversion="1.6")

from sklearn.base import clone  # noqa: E402
from sklearn.cluster import DBSCAN  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier, KNeighborsTransformer  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from mulfree_cupy.compat.sklearn import L1NeighborsTransformer  # noqa: E402


@parametrize_with_checks(
    [L1NeighborsTransformer(), L1NeighborsTransformer(mode="connectivity", n_neighbors=1)]
)
def test_scikit_learns_own_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks warn of what they skip
        check(estimator)


@pytest.fixture(scope="module")
def digits():
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    return images[:400] + rng.random((400, 64)) / 100, labels[:400]  # no two distances are equal


@pytest.mark.parametrize("mode", ["distance", "connectivity"])
@pytest.mark.parametrize("n_neighbors", [1, 7])
def test_the_graph_is_that_of_scikit_learn(digits, mode, n_neighbors):
    images, _ = digits
    options = {"mode": mode, "n_neighbors": n_neighbors}
    ours = L1NeighborsTransformer(**options)
    theirs = KNeighborsTransformer(**options, metric="manhattan")
    for samples in (None, images[300:]):
        a, b = (
            t.fit_transform(images) if samples is None else t.fit(images[:300]).transform(samples)
            for t in (ours, theirs)
        )
        assert a.shape == b.shape and a.format == b.format == "csr"
        assert_array_equal(a.indptr, b.indptr)
        assert_array_equal(a.indices, b.indices)
        assert_allclose(a.data, b.data, rtol=1e-12)


def test_kneighbors_and_their_graph_are_those_of_scikit_learn(digits):
    images, _ = digits
    ours = L1NeighborsTransformer(n_neighbors=4).fit(images)
    theirs = KNeighborsTransformer(n_neighbors=4, metric="manhattan").fit(images)
    for arguments in ((), (images[:9],), (images[:9], 3), (None, 6)):
        for a, b in zip(ours.kneighbors(*arguments), theirs.kneighbors(*arguments), strict=True):
            assert_allclose(a, b, rtol=1e-12)
        a, b = ours.kneighbors_graph(*arguments), theirs.kneighbors_graph(*arguments)
        assert_array_equal(a.toarray(), b.toarray())
    indices = ours.kneighbors(images[:9], return_distance=False)
    assert_array_equal(indices, ours.kneighbors(images[:9])[1])
    assert_array_equal(
        ours.get_feature_names_out()[:2], ["l1neighborstransformer0", "l1neighborstransformer1"]
    )


def test_no_sample_is_its_own_neighbour_among_equal_ones():
    samples = np.repeat([[0.0], [5.0]], 4, axis=0)
    distances, indices = L1NeighborsTransformer(n_neighbors=2).fit(samples).kneighbors()
    assert_array_equal(distances, 0)
    assert (indices != np.arange(8)[:, None]).all()
    assert_array_equal(indices // 4, np.arange(8)[:, None] // 4 * [1, 1])


def test_before_a_classifier(digits):
    images, labels = digits
    ours = make_pipeline(
        L1NeighborsTransformer(n_neighbors=5), KNeighborsClassifier(5, metric="precomputed")
    ).fit(images[:300], labels[:300])
    theirs = KNeighborsClassifier(5, metric="manhattan").fit(images[:300], labels[:300])
    assert_array_equal(ours.predict(images[300:]), theirs.predict(images[300:]))
    again = clone(ours).fit(images[:300], labels[:300])
    assert_array_equal(again.predict(images[300:]), theirs.predict(images[300:]))


def test_before_dbscan(digits):
    images, _ = digits
    ours = make_pipeline(
        L1NeighborsTransformer(n_neighbors=399), DBSCAN(eps=120, metric="precomputed")
    )
    theirs = DBSCAN(eps=120, metric="manhattan")
    labels = theirs.fit_predict(images)
    assert len(set(labels)) > 2
    assert_array_equal(ours.fit_predict(images), labels)


def test_samples_of_bytes_stay_bytes(digits):
    images = digits[0].astype(np.uint8)
    transformer = L1NeighborsTransformer(n_neighbors=3).fit(images)
    assert transformer._samples.dtype == np.uint8
    distances, indices = transformer.kneighbors(images[:20])
    expected = mf.nearest_l1(images[:20], images, 3)
    assert distances.dtype == np.float64
    assert_array_equal(distances, expected[0])
    assert_array_equal(indices, expected[1])


def test_a_mask_is_not_dropped(digits):
    images, _ = digits
    masked = np.ma.masked_less(images, 1)
    transformer = L1NeighborsTransformer().fit(images)
    for call in (transformer.fit, transformer.transform, transformer.kneighbors):
        for X in (masked, list(masked)):
            with pytest.raises(TypeError, match="L1NeighborsTransformer: X is a masked array; .*"):
                call(X)


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"mode": "near"}, ValueError, "mode must be one of connectivity, distance, got 'near'"),
        ({"n_neighbors": 0}, ValueError, "n_neighbors must be at least 1, got 0"),
        ({"n_neighbors": 2.5}, TypeError, "n_neighbors must be an int, got 2.5"),
    ],
)
def test_wrong_parameters(options, error, why):
    with pytest.raises(error, match=f"^L1NeighborsTransformer: {why}"):
        L1NeighborsTransformer(**options).fit(np.ones((4, 2)))


def test_what_does_not_fit_raises_what_scikit_learn_raises(digits):
    images, _ = digits
    with pytest.raises(NotFittedError):
        L1NeighborsTransformer().transform(images)
    transformer = L1NeighborsTransformer(n_neighbors=5).fit(images[:5])
    with pytest.raises(ValueError, match="Expected n_neighbors <= 5 of .* but n_neighbors = 6"):
        transformer.transform(images)
    with pytest.raises(ValueError, match="Expected n_neighbors <= 4 of .* but n_neighbors = 5"):
        transformer.kneighbors()
    with pytest.raises(
        ValueError, match="X has 3 features, but L1NeighborsTransformer is expecting"
    ):
        transformer.transform(np.ones((2, 3)))
    images = images.copy()
    images[3, 2] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        L1NeighborsTransformer().fit(images)
    with pytest.raises(ValueError, match="mode must be one of"):
        transformer.kneighbors_graph(mode="near")
