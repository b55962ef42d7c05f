"""scikit-learn: a network of adder layers in a pipeline, a search, and its features elsewhere.

Run it as

    python examples/sklearn_pipeline.py
"""

from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC

from mulfree_cupy.compat.sklearn import AdderClassifier, NetworkFeatures


def main():
    X, y = load_digits(return_X_y=True)  # rows of 64 pixels
    X, X_test, y, y_test = train_test_split(X, y, test_size=500, random_state=0)

    pipeline = make_pipeline(MinMaxScaler(), AdderClassifier(epochs=3, random_state=0))
    grid = {"adderclassifier__model": ["adder-lenet", "conv-lenet"]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(X, y)
    for parameters, score in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        print(f"{parameters['adderclassifier__model']:12} {score:.1%} right, cross-validated")

    classifier = AdderClassifier(epochs=10, random_state=0).fit(X, y)
    print(f"10 epochs: {classifier.score(X_test, y_test):.1%} of {len(y_test)} digits right")

    features = NetworkFeatures(classifier.predictor_)
    machine = make_pipeline(features, SVC()).fit(X, y)
    print(f"a support vector machine on its features: {machine.score(X_test, y_test):.1%}")


if __name__ == "__main__":
    main()
