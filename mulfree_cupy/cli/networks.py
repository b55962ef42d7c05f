"""``mulfree models``, ``evaluate`` and ``profile``: networks, their accuracy and their time."""

from __future__ import annotations

import argparse
from pathlib import Path

from mulfree_cupy.cli import options


def add_models(commands) -> None:
    command = commands.add_parser(
        "models",
        help="list the networks",
        description="List the networks that other commands take, with the default image "
        "shape of each.",
    )
    command.add_argument(
        "text", nargs="?", metavar="TEXT", help="only names that contain it: resnet20"
    )
    command.set_defaults(run=_models)


def _models(chosen: argparse.Namespace) -> int:
    from mulfree_cupy import models

    names = [name for name in models.MODELS if (chosen.text or "") in name]
    if not names:
        raise ValueError(f"no network's name contains {chosen.text!r}")
    width = max(map(len, names))
    for name in names:
        shape = models.default_shape(name)
        images = "{channels}x{size}x{size}".format(**shape)
        print(f"{name.ljust(width)}  {images}, {shape['classes']} classes")
    return 0


def add_evaluate(commands) -> None:
    command = commands.add_parser(
        "evaluate",
        help="test a trained network",
        description="Print the accuracy of a checkpoint, or of another file that "
        "mulfree_cupy.load reads, on a data set's test part.",
    )
    command.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="as written by mulfree train, quantize or export"
    )
    options.add_data(command)
    command.set_defaults(run=_evaluate)


def _evaluate(chosen: argparse.Namespace) -> int:
    from mulfree_cupy.inference.file import is_described
    from mulfree_cupy.train import check_data, evaluate, load_model, namespace_of

    xp = namespace_of(chosen.device)
    if is_described(chosen.checkpoint):
        return _evaluate_network(chosen, xp)
    model, saved = load_model(chosen.checkpoint, xp)
    _, test = options.load_data(chosen)
    check_data(chosen.checkpoint, saved, test)
    accuracy = evaluate(model, test, saved.mean, saved.std, xp)
    name = saved.recipe.model
    print(f"{name} on {test.name}: test accuracy {accuracy:.2%} of {len(test)} images")
    return 0


def _evaluate_network(chosen: argparse.Namespace, xp) -> int:
    from mulfree_cupy import inference
    from mulfree_cupy.report.accuracy import accuracy, check_data

    predictor = inference.load(chosen.checkpoint)
    _, test = options.load_data(chosen)
    check_data(chosen.checkpoint, predictor.network, test)
    share = accuracy(predictor, test, xp)
    print(f"{chosen.checkpoint} on {test.name}: test accuracy {share:.2%} of {len(test)} images")
    return 0


def add_profile(commands) -> None:
    command = commands.add_parser(
        "profile",
        help="profile a training step, or a prediction, layer by layer",
        description="Time training steps on random images and print the median by layer; or with "
        "--inference of predictions by the network that mulfree_cupy.load returns, by step, with "
        "the shape of each output, the terms summed and the bytes moved per image.",
    )
    command.add_argument(
        "--model",
        default="adder-resnet20",
        help="name of the network, or with --inference a file of one (default: adder-resnet20)",
    )
    command.add_argument("--inference", action="store_true", help="predict instead of training")
    command.add_argument(
        "--batch-size", type=options.whole(1), help="default: 256, with --inference 128"
    )
    command.add_argument(
        "--size", type=options.whole(1), default=32, help="image side in pixels (default: 32)"
    )
    command.add_argument("--channels", type=options.whole(1), default=3, help="default: 3")
    options.add_device(command)
    command.set_defaults(run=_profile)


def _profile(chosen: argparse.Namespace) -> int:
    import numpy as np

    from mulfree_cupy import models
    from mulfree_cupy.train import namespace_of, profile

    if chosen.inference:
        return _profile_inference(chosen)
    batch_size = chosen.batch_size or 256
    if batch_size == 1:
        raise ValueError("--batch-size must be at least 2 for a training step")
    xp = namespace_of(chosen.device)
    model = models.build(chosen.model, channels=chosen.channels, size=chosen.size, classes=10)
    shape = batch_size, chosen.channels, chosen.size, chosen.size
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    labels = np.arange(batch_size) % 10
    print(profile(model.to(xp), xp.asarray(images), xp.asarray(labels)))
    return 0


def _profile_inference(chosen: argparse.Namespace) -> int:
    import numpy as np

    from mulfree_cupy import inference, models
    from mulfree_cupy.nn.description import network_of

    if chosen.device != "cpu":
        raise ValueError(f"--inference is for the CPU, got --device {chosen.device}")
    if Path(chosen.model).is_file() or Path(chosen.model).suffix:
        predictor = inference.load(chosen.model)
    else:
        shape = {"channels": chosen.channels, "size": chosen.size}
        model = models.build(chosen.model, **shape, classes=10)
        predictor = inference.Predictor(network_of(model, **shape))
    shape = chosen.batch_size or 128, *predictor.network.image
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    print(inference.profile(predictor, images))
    return 0
