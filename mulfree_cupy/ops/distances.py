"""L1 distances, of rows from rows and of the windows of an image from a template."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mulfree_cupy import arrays, geometry, launch
from mulfree_cupy.arrays import Array
from mulfree_cupy.launch import distances as launchers

__all__ = ["match_template_l1", "nearest_l1", "pairwise_l1"]

_COPIED = 8 << 20  # bytes of rows that are put in order at a time


@arrays.on_device_of_arguments
def pairwise_l1(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """L1 distances of the rows of one array from those of another.

    Also called Manhattan or city-block distances: SciPy's ``cdist(a, b, "cityblock")`` and
    scikit-learn's ``manhattan_distances``, in the dtype of the rows.

    Parameters
    ----------
    a : array, shape (M, L)
        float32, float64 or uint8.
    b : array, shape (P, L)
        Mixtures are promoted as NumPy does; two arrays of uint8 are exact.
    out : array, shape (M, P), optional
        Receives the answer; must not overlap an input.

    Returns
    -------
    array, shape (M, P)
        float32 or float64; int32, exact, for uint8.

    Raises
    ------
    ValueError
        If shapes or `out` do not fit, or rows of uint8 are so long that a sum could exceed int32.
    TypeError
        If a dtype is not served, or the arrays are on different devices.

    See Also
    --------
    nearest_l1 : the nearest rows alone, the other distances never stored.

    Notes
    -----
    ``y[m,p] = sum_l abs(a[m,l] - b[p,l])``. On a CPU a distance depends on its two rows alone, so
    that equal rows are at the same distance, whatever stands around them, and a row is 0 from
    itself. (Where a or b has fewer than 4 rows sums are added up in another order.) Beside the
    answer a bounded workspace is all that is stored, and a copy of what has to be converted.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> mf.pairwise_l1(np.array([[0.0, 0.0], [1.0, 2.0]]), np.array([[1.0, 0.0], [1.0, 2.0]]))
    array([[1., 3.],
           [2., 0.]])
    """
    given = dict(a=a, b=b)
    (a, b), dtype = _take_rows("pairwise_l1", given)
    shape = len(a), len(b)
    out = arrays.output_array("pairwise_l1", out, shape, dtype, **given)
    result = arrays.answer(out, shape, dtype, like=a)
    device = launch.device_for(a)
    if not (result.size and a.shape[1]):
        result[...] = 0
    elif device is None:
        run = launch.cpu_kernels().pairwise_l1
        for rows, part in _in_rows(a):
            for columns, other in _in_rows(b):
                run(part, other, result[rows, columns])
    else:
        launchers.pairwise(device, *map(arrays.contiguous, (a, b)), result)
    return arrays.deliver(result, out)


@arrays.on_device_of_arguments
def nearest_l1(queries: Array, points: Array, k: int) -> tuple[Array, Array]:
    """The nearest points of each query by L1 distance.

    The distances are those of `pairwise_l1`, of which no more than a block at a time is stored.

    Parameters
    ----------
    queries : array, shape (M, L)
        float32, float64 or uint8, finite.
    points : array, shape (P, L)
        Mixtures are promoted as NumPy does; two arrays of uint8 are exact.
    k : int
        How many, from 1 to P.

    Returns
    -------
    distances : array, shape (M, k)
        In ascending order. float32 or float64; int32 for uint8.
    indices : array of int64, shape (M, k)
        Rows of `points`; of equally near ones the first comes first.

    Raises
    ------
    ValueError
        If shapes do not fit, k is larger than the number of points, or a number is NaN or
        infinite. CuPy arrays are not looked at, as that would make the CPU wait: there a distance
        that is NaN counts as infinite.
    TypeError
        If a dtype is not served, or the arrays are on different devices.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> points = np.array([[0, 0], [5, 5], [1, 0], [0, 1]], np.uint8)
    >>> mf.nearest_l1(np.array([[0, 0]], np.uint8), points, 3)
    (array([[0, 1, 1]], dtype=int32), array([[0, 2, 3]]))
    """
    given = dict(queries=queries, points=points)
    (queries, points), dtype = _take_rows("nearest_l1", given)
    k = geometry.integer("nearest_l1", "k", k)
    if k > len(points):
        raise ValueError(
            f"nearest_l1: k must be at most the number of points, got k={k} and points of shape "
            f"{points.shape}"
        )
    for name, array in zip(given, (queries, points), strict=True):
        _check_finite("nearest_l1", name, array)
    shape = len(queries), k
    distances = arrays.empty_beside(queries, shape, dtype)
    indices = arrays.empty_beside(queries, shape, np.int64)
    device = launch.device_for(queries)
    if not (distances.size and queries.shape[1]):
        distances[...] = 0
        indices[...] = arrays.namespace(indices).arange(k)
    elif device is None:
        run = launch.cpu_kernels().nearest_l1
        ((_, points),) = _in_rows(points, len(points))
        for rows, part in _in_rows(queries):
            run(part, points, distances[rows], indices[rows])
    else:
        launchers.nearest(device, *map(arrays.contiguous, (queries, points)), distances, indices)
    return distances, indices


@arrays.on_device_of_arguments
def match_template_l1(image: Array, template: Array) -> Array:
    """Sum of absolute differences between a template and each place of an image.

    Laid out as scikit-image's ``match_template(image, template)``, but a distance: the best match
    is where the answer is smallest.

    Parameters
    ----------
    image : array, shape (H, W) or (H, W, D)
        float32, float64 or uint8.
    template : array, shape (h, w) or (h, w, d)
        With as many dimensions, none larger than the image's. The template of a colour image has
        all of its channels, and the answer then one along that axis. Mixtures are promoted as
        NumPy does; two arrays of uint8 are exact.

    Returns
    -------
    array, shape (H - h + 1, W - w + 1) or (H - h + 1, W - w + 1, D - d + 1)
        At each place of the template's first corner. float32 or float64; int32 for uint8.

    Raises
    ------
    ValueError
        If shapes do not fit, or the template of uint8 is so large that a sum could exceed int32.
    TypeError
        If a dtype is not served, or the arrays are on different devices.

    Notes
    -----
    ``y[p,q] = sum_ij abs(image[p+i,q+j] - template[i,j])``.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> image = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
    >>> mf.match_template_l1(image, np.array([[5, 6], [8, 9]], np.uint8))
    array([[16, 12],
           [ 4,  0]], dtype=int32)
    """
    given = dict(image=image, template=template)
    taken = image, template = arrays.take("match_template_l1", **given)
    axes = "H, W, D" if image.ndim == 3 else "H, W"
    geometry.check_rank("match_template_l1", "image", image.shape, axes)
    geometry.check_rank("match_template_l1", "template", template.shape, axes)
    if 0 in template.shape or any(t > s for t, s in zip(template.shape, image.shape, strict=True)):
        raise ValueError(
            f"match_template_l1: template must have at least one element and be no larger than the "
            f"image, got template of shape {template.shape} and image of shape {image.shape}"
        )
    (image, template), dtype = _supported("match_template_l1", given, taken, template.size)
    device = launch.device_for(image)
    # Channel by channel, as the kernels want it; an image of two axes has one.
    xp = arrays.namespace(image)
    image, template = (
        arrays.contiguous(xp.moveaxis(xp.atleast_3d(a), -1, 0)) for a in (image, template)
    )
    shape = [s - t + 1 for s, t in zip(image.shape, template.shape, strict=True)]
    result = arrays.empty_beside(image, tuple(shape), dtype)
    for first, plane in enumerate(result):
        channels = image[first : first + len(template)]
        if device is None:
            launch.cpu_kernels().match_template_l1(channels, template, plane)
        else:
            launchers.match_template(device, channels, template, plane)
    return xp.moveaxis(result, 0, -1) if axes == "H, W, D" else result[0]


def _take_rows(function: str, given: dict) -> tuple[list[Array], np.dtype]:
    """Two arrays of rows of the same length, and the dtype of their distances."""
    (first, second), taken = given, arrays.take(function, **given)
    a, b = taken
    geometry.check_rank(function, first, a.shape, "M, L")
    geometry.check_rank(function, second, b.shape, "P, L")
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{function}: the rows of {first} and {second} must have the same length, got {first} "
            f"of shape {a.shape} and {second} of shape {b.shape}"
        )
    return _supported(function, given, taken, a.shape[1])


def _supported(
    function: str, given: dict, taken: list[Array], terms: int
) -> tuple[list[Array], np.dtype]:
    """The arrays in a dtype that the kernels serve, and the dtype of a sum of so many terms."""
    if any(array.dtype != np.uint8 for array in taken):
        converted = arrays.common_floats(function, given, taken)
        return converted, converted[0].dtype
    most = (2**31 - 1) // 255
    if terms > most:
        shapes = " and ".join(
            f"{name} has shape {array.shape}" for name, array in zip(given, taken, strict=True)
        )
        raise ValueError(
            f"{function}: a sum of {terms} differences of uint8 can exceed int32; {most} is the "
            f"most, {shapes}"
        )
    return taken, np.dtype(np.int32)


def _in_rows(array: np.ndarray, at_once: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """The array if the numbers of a row lie side by side, else copies of some rows at a time."""
    if array.shape[1] == 1 or array.strides[1] == array.itemsize:
        yield slice(None), array
        return
    step = at_once or max(1, _COPIED // (array.shape[1] * array.itemsize))
    for first in range(0, len(array), step):
        rows = slice(first, first + step)
        yield rows, np.ascontiguousarray(array[rows])


def _check_finite(function: str, name: str, array: Array) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        return
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(array.sum())  # mostly; else a number is not, or the sum overflows
    if not finite and not np.isfinite(array).all():
        raise ValueError(
            f"{function}: {name} must be finite, got NaN or infinity in shape {array.shape}"
        )
