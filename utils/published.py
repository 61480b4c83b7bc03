"""What a published run leaves in Results/ and a run with `pretrained = True` starts from."""

import json
from pathlib import Path

import torch
from torch import nn

from utils.storage import load_tensors, save_json, save_tensors
from utils.training import Training

RESULTS = Path(__file__).resolve().parent.parent / "Results"


class PublishedError(RuntimeError):
    """Published files that are missing or do not fit the parameters; the message says what to do."""


class Published:
    """A part's published networks, trainings, numbers and figures.

    Args:
        part: "unet", "cvae_mnist" or "cvae_cifar10".
        source: of the data that they are to be used on.
        folder: where they lie.

    Raises:
        PublishedError: if a file is missing or damaged, or the networks learnt from other data.
    """

    def __init__(self, part: str, source: str, folder: Path = RESULTS):
        self.part, self.folder = part, folder
        self.summary = self.numbers(f"{part}.json")
        self.trainings = self.numbers(f"{part}_trainings.json")["trainings"]
        if source != self.summary["data"]:
            theirs = f"the published networks learnt from {self.summary['data']!r}, not from {source!r}"
            raise PublishedError(f"{theirs}: set source to that, or pretrained to False")

    def numbers(self, name: str) -> dict:
        """What a published json file holds.

        Raises:
            PublishedError: if it is missing or damaged.
        """
        path = self.file(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise PublishedError(f"{path} is damaged: clone the course anew, or set pretrained to False") from error

    def file(self, name: str) -> Path:
        """The path of a published file.

        Raises:
            PublishedError: if it is not there.
        """
        path = self.folder / name
        if not path.is_file():
            raise PublishedError(f"{path} is missing: clone the course anew, or set pretrained to False")
        return path

    def network(self, name: str, model: nn.Module) -> tuple[nn.Module, Training]:
        """The model with its published weights, in evaluation mode, and how its training went.

        Args:
            name: of the network, such as "MP+Tr+BCE", "faithful" or "judge".
            model: built with the published parameters.

        Raises:
            PublishedError: if the weights are missing, or those of a network of another size.
            DamagedFileError: if they cannot be read.
        """
        path = self.file(f"{self.part}_{name}.pt")
        weights, shapes = load_tensors(path), {key: tensor.shape for key, tensor in model.state_dict().items()}
        if {key: tensor.shape for key, tensor in weights.items()} != shapes:
            remedy = "leave the sizes of the networks as they are, or set pretrained to False"
            raise PublishedError(f"{path} is of a network of another size: {remedy}")
        model.load_state_dict(weights)
        return model.eval(), Training(**self.trainings[name])


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Round every weight to half precision, in place: what is measured from here on is what the saved file does."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


def save_network(path: Path, model: nn.Module) -> None:
    """Write a network's weights, in half precision."""
    weights = model.state_dict().items()
    save_tensors(path, {key: (x.half() if x.is_floating_point() else x).cpu() for key, x in weights})


def save_trainings(path: Path, source: str, trainings: dict[str, Training]) -> None:
    """Write how trainings went, by the names of their networks."""
    save_json(path, {"data": source, "trainings": {name: training._asdict() for name, training in trainings.items()}})
