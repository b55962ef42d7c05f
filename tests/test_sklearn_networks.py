"""`mulfree_cupy.compat.sklearn`'s networks: scikit-learn's own checks, and ours."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mulfree_cupy import data, inference, models
from mulfree_cupy.nn.description import network_of
from mulfree_cupy.train import Recipe, Training

pytest.importorskip("sklearn", minversion="1.6")
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from mulfree_cupy.compat.sklearn import AdderClassifier, NetworkFeatures


@parametrize_with_checks([AdderClassifier(epochs=5, random_state=0)])
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


X, Y = load_digits(return_X_y=True)
TRAIN, TEST = slice(0, 500), slice(500, 900)


def fitted(X=X, y=Y, epochs=2, **options):
    options = {"random_state": 0, **options}
    return AdderClassifier(epochs=epochs, **options).fit(X[TRAIN], y[TRAIN])


@pytest.fixture(scope="module")
def classifier():
    return fitted(epochs=5)


def test_it_tells_digits_apart(classifier):
    assert classifier.score(X[TEST], Y[TEST]) > 0.75
    assert classifier.n_iter_ == len(classifier.loss_curve_) == 5
    assert classifier.loss_curve_[-1] < classifier.loss_curve_[0]
    proba = classifier.predict_proba(X[TEST])
    assert proba.shape == (400, 10) and proba.dtype == np.float64
    assert_allclose(proba.sum(axis=1), 1)
    assert_array_equal(proba.argmax(axis=1), classifier.predict(X[TEST]))


def test_it_is_what_training_makes_of_its_images():
    images = X[TRAIN].astype(np.uint8).reshape(-1, 1, 8, 8)
    names = tuple(map(str, range(10)))
    dataset = data.Dataset(images, Y[TRAIN], names, "digits")
    ours = fitted(X.astype(np.uint8), random_state=5)
    seed = int(np.random.RandomState(5).randint(2**31))
    recipe = Recipe("adder-lenet", 2, augment="none", seed=seed, batch_size=64, nesterov=True)
    run = Training(recipe, dataset, dataset)
    assert run.run(progress=False).train_loss == ours.loss_curve_
    for name, array in run.model.state_dict().items():
        assert_array_equal(ours.predictor_.network.arrays[name], array)


def test_images_come_in_any_shape_and_classes_by_any_name():
    want = fitted()
    labels = np.array(list("zyxwvutsrq"))[Y]
    for images in (X.reshape(-1, 8, 8), X.reshape(-1, 1, 8, 8), X.astype("f"), X.tolist()):
        got = fitted(images, labels if images is not X else Y)
        assert got.image_shape_ == (1, 8, 8) and got.n_features_in_ == 64
        assert_array_equal(got.classes_, list("qrstuvwxyz"))
        assert got.predict_proba(images[TEST]).shape == (400, 10)
    assert want.loss_curve_ == fitted(X.reshape(-1, 8, 8)).loss_curve_
    colours = fitted(np.hstack([X, X]), image_shape=(2, 8, 8))
    assert colours.image_shape_ == (2, 8, 8)
    fitted(np.hstack([X, 0 * X]), image_shape=(2, 8, 8))  # a constant channel
    assert fitted(X[:, :50]).image_shape_ == (1, 8, 8)  # filled up


@pytest.mark.parametrize("package", ["jax.numpy", "pandas", "torch", "xarray", None])
def test_images_of_other_libraries_are_taken_as_their_rows_are(classifier, package):
    images = X[TEST].reshape(-1, 8, 8)
    if package == "pandas":
        taken = [(pytest.importorskip(package).DataFrame(X[TEST]), X[TEST])]
    else:
        convert = {"xarray": "DataArray", "torch": "tensor"}.get(package, "asarray")
        convert = getattr(pytest.importorskip(package), convert) if package else np.ndarray.tolist
        taken = [(convert(given), given) for given in (images, images[:, None], X[TEST])]
    for foreign, own in taken:
        assert_array_equal(classifier.predict(foreign), classifier.predict(own))
        features = NetworkFeatures(classifier.predictor_).fit(foreign)
        assert_array_equal(features.transform(foreign), features.transform(own))


def test_lazy_images_are_not_computed(classifier):
    da = pytest.importorskip("dask.array")
    for images in (X, X.reshape(-1, 8, 8)):
        lazy = da.from_array(images)
        for call in (classifier.predict, NetworkFeatures(classifier.predictor_).fit):
            with pytest.raises(TypeError, match=r": X, a dask.array.*, is lazy; .*\.compute\(\)"):
                call(lazy)
    with pytest.raises(TypeError, match="AdderClassifier: y, a dask.array.*, is lazy"):
        fitted(y=da.from_array(Y))


def test_images_of_another_layout_are_refused():
    colours = np.stack([X.reshape(-1, 8, 8)] * 3, axis=1)[:200]
    classifier = AdderClassifier(epochs=1, random_state=0).fit(colours, Y[:200])
    remedy = r"shape \(N, 3, 8, 8\), got shape \(200, 8, 8, 3\); .*: X\.transpose\(0, 3, 1, 2\)"
    last = colours.transpose(0, 2, 3, 1)
    features = NetworkFeatures(classifier.predictor_)
    for call in (
        lambda: classifier.predict(last),
        lambda: classifier.score(last, Y[:200]),
        lambda: classifier.partial_fit(last, Y[:200]),
        lambda: features.fit_transform(last),
        lambda: features.fit(colours).transform(last),
    ):
        with pytest.raises(ValueError, match=remedy):
            call()
    grey = AdderClassifier(epochs=1).fit(X[:200], Y[:200])
    want = r"AdderClassifier: images in X must have shape \(N, 1, 8, 8\) or \(N, 8, 8\), got "
    for images in (X.reshape(-1, 4, 16), X.reshape(-1, 1, 16, 4), X.reshape(-1, 4, 4, 4)):
        with pytest.raises(ValueError, match=want):
            grey.predict(images)


@pytest.mark.parametrize("shape", [8, "8x8", (8.0, 8.0), (-8, -8), (64,), (7, 1, 8, 8)])
def test_an_image_shape_has_two_or_three_sizes(shape):
    for images in (X, X.reshape(-1, 8, 8)):
        with pytest.raises(ValueError, match=r"AdderClassifier: image_shape must be \(C, H, W\)"):
            fitted(images, image_shape=shape)


def test_the_seed_decides_all():
    one, two, other = fitted(), fitted(), fitted(random_state=1)
    assert one.loss_curve_ == two.loss_curve_ != other.loss_curve_
    assert_array_equal(one.predict_proba(X[TEST]), two.predict_proba(X[TEST]))
    assert fitted(random_state=np.random.RandomState(0)).loss_curve_ == one.loss_curve_


def test_it_goes_on_with_more_images():
    classifier = AdderClassifier(random_state=0)
    for _ in range(3):
        for first in (0, 250):
            part = slice(first, first + 250)
            classifier.partial_fit(X[part], Y[part], classes=range(10))
    assert classifier.n_iter_ == 6
    assert classifier.score(X[TEST], Y[TEST]) > 0.75
    mean = classifier.predictor_.network.mean
    assert_allclose(mean, X[:250].mean(), rtol=1e-6)  # the first images'
    before = classifier.loss_curve_[-1]
    classifier.partial_fit(X[:251], Y[:251])  # of which one would be left over
    assert classifier.loss_curve_[-1] < 2 * before
    fresh = classifier.fit(X[TRAIN], Y[TRAIN])
    assert fresh.n_iter_ == 20


def test_in_a_pipeline_with_a_search_over_its_parameters(classifier):
    pipeline = make_pipeline(MinMaxScaler(), AdderClassifier(epochs=4, random_state=0))
    grid = {"adderclassifier__rate": [0.1, 0.0]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X[TRAIN], Y[TRAIN])
    assert search.best_params_ == {"adderclassifier__rate": 0.1}
    copied = clone(classifier).set_params(epochs=5).fit(X[TRAIN], Y[TRAIN])
    again = pickle.loads(pickle.dumps(classifier))
    for other in (copied, again):
        assert_array_equal(other.predict_proba(X[TEST]), classifier.predict_proba(X[TEST]))
    on = again.partial_fit(X[TRAIN], Y[TRAIN])
    assert on.loss_curve_ == copied.partial_fit(X[TRAIN], Y[TRAIN]).loss_curve_


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fitted(image_shape=(9, 8)), ValueError, r"image_shape=\(9, 8\) .* than X, 64"),
        (lambda: fitted(X.reshape(-1, 4, 16)), ValueError, "square images, got 4 x 16"),
        (
            lambda: fitted(X.reshape(-1, 8, 8), image_shape=(1, 4, 16)),
            ValueError,
            r"image_shape=\(1, 4, 16\) is not that of X, \(1, 8, 8\)",
        ),
        (
            lambda: fitted(X.reshape(-1, 1, 1, 8, 8)),
            ValueError,
            r"AdderClassifier: X must have shape \(N, C, H, W\), \(N, H, W\) or \(N, pixels\)",
        ),
        (lambda: fitted(np.ma.masked_less(X, 1)), TypeError, r"X is a masked array; .*filled"),
        (
            lambda: fitted(y=np.ma.masked_equal(Y, 9)),
            TypeError,
            "AdderClassifier: y is a masked array; .*filled",
        ),
        (lambda: fitted(X * np.nan), ValueError, "X contains NaN"),
        (lambda: fitted(np.full(X.shape, "x", object)), ValueError, "could not convert"),
        (lambda: fitted(X[:1]), ValueError, "1 sample"),
        (lambda: fitted(y=0 * Y), ValueError, "at least 2 classes"),
        (lambda: fitted(y=Y + 0.5), ValueError, "Unknown label type"),
        (lambda: fitted(model="no-lenet"), ValueError, "no model named 'no-lenet'"),
        (lambda: fitted(batch_size=0), ValueError, "AdderClassifier: batch_size must be at least"),
        (lambda: fitted(rate=-1), ValueError, "rate must be a finite number"),
        (lambda: fitted(X * 0), ValueError, "AdderClassifier: X is constant"),
        (lambda: fitted(momentum=2), ValueError, "momentum must be at most 1, got 2"),
        (
            lambda: fitted(progress="x"),
            ValueError,
            "AdderClassifier: progress must be True or False, got 'x'",
        ),
        (lambda: AdderClassifier().predict(X), NotFittedError, "not fitted"),
        (lambda: AdderClassifier().partial_fit(X, Y), ValueError, "classes must be passed"),
        (
            lambda: AdderClassifier().partial_fit(X, Y, classes=range(9)),
            ValueError,
            r"y has classes that are not among classes: \[9\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_what_does_not_fit_a_fitted_one_is_refused(classifier):
    with pytest.raises(ValueError, match="X has 63 features, but .* 64"):
        classifier.predict(X[:, 1:])
    with pytest.raises(ValueError, match="not the same as before"):
        classifier.partial_fit(X, Y, classes=range(11))
    other = clone(classifier).set_params(epochs=1).fit(X[TRAIN], Y[TRAIN])
    other.set_params(model="conv-lenet")
    with pytest.raises(ValueError, match="goes on with model='adder-lenet'.* fit for .*conv-lenet"):
        other.partial_fit(X[TRAIN], Y[TRAIN])
    assert other.fit(X[TRAIN], Y[TRAIN]).partial_fit(X[TRAIN], Y[TRAIN]).n_iter_ == 2
    failed = AdderClassifier(rate=-1)
    for _ in range(2):  # a first call that failed was no first call
        with pytest.raises(ValueError, match="rate"):
            failed.partial_fit(X, Y, classes=range(10))
    with pytest.raises(NotFittedError):
        failed.predict(X)
    black = AdderClassifier()
    with pytest.raises(ValueError, match="AdderClassifier: X is constant"):
        black.partial_fit(0 * X, Y, classes=range(10))


def test_progress_is_that_of_training(capsys):
    fitted(epochs=1, progress=True)
    printed = capsys.readouterr().err
    assert "in training" in printed and "test" not in printed


def test_features_are_what_the_last_layer_takes(classifier, tmp_path):
    network = classifier.predictor_.network
    path = tmp_path / "network.npz"
    inference.save_npz(path, network)
    answers = network.answers(network.normalised(X[TEST].astype("f").reshape(-1, 1, 8, 8)))
    for source in (path, str(path), classifier.predictor_):
        features = NetworkFeatures(source).fit(X)
        got = features.transform(X[TEST].reshape(-1, 8, 8))
        assert_allclose(got, answers["bn4"][:, :, 0, 0], rtol=1e-4, atol=1e-4)
        assert got.dtype == np.float32
        assert_array_equal(features.transform(X[TEST]), got)
    names = features.get_feature_names_out()
    assert len(names) == got.shape[1] == 84 and names[83] == "networkfeatures83"
    for copied in (clone(features).fit(X), pickle.loads(pickle.dumps(features))):
        assert_array_equal(copied.transform(X[TEST]), got)


def test_features_feed_another_estimator(classifier):
    features = NetworkFeatures(classifier.predictor_)
    pipeline = make_pipeline(features, LogisticRegression(max_iter=1000)).fit(X[TRAIN], Y[TRAIN])
    assert pipeline.score(X[TEST], Y[TEST]) > 0.75
    pytest.importorskip("pandas")
    table = clone(features).set_output(transform="pandas").fit_transform(X[TEST])
    assert table.shape == (400, 84) and table.columns[0] == "networkfeatures0"


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [("adder-resnet20", 16, 64), ("conv-vggsmall", 8, 512), ("conv-lenet-plane", 8, 2)],
)
def test_features_of_other_networks(name, size, features):
    network = network_of(models.build(name, channels=3, size=size), 3, size)
    images = np.zeros((2, 3, size, size), np.uint8)
    got = NetworkFeatures(inference.Predictor(network)).fit_transform(images)
    assert got.shape == (2, features)


def test_features_refuse_what_is_no_such_image(classifier):
    features = NetworkFeatures(classifier.predictor_)
    with pytest.raises(ValueError, match="X has 63 features, and NetworkFeatures .* 1 x 8 x 8"):
        features.fit(X[:, 1:])
    with pytest.raises(NotFittedError):
        features.transform(X)
    for network in (classifier, None):
        with pytest.raises(TypeError, match=r"NetworkFeatures: network must be .*\.predictor_ of"):
            NetworkFeatures(network).fit(X)
    with pytest.raises(FileNotFoundError):
        NetworkFeatures("no-such-file.npz").fit(X)
    with pytest.raises(TypeError, match="masked"):
        features.fit(X).transform(np.ma.masked_less(X, 1))
