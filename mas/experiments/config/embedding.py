"""How tasks are embedded: by which network, from which images, with which estimator."""

from typing import Literal, Self

from pydantic import model_validator

from mas.annotations import Count, Positive, Seed
from mas.experiments.config.schema import MODEL_MODELS, AnyModel, Device, Training, WholeStream
from mas.experiments.options import Options
from mas.task2vec import BETA

Estimator = Literal["exact", "sampled", "hutchinson", "empirical", "predicted", "variational"]
DRAWN = ("sampled", "hutchinson", "variational")  # estimators that draw from the seed


class ProbeNetwork(Options):
    """The network that tasks are embedded by.

    It is trained once on the whole data set of ``benchmark``, and kept in the cache. Without ``training`` it
    is taken as it is built, such as with the ``weights`` of torchvision.
    """

    model: AnyModel = MODEL_MODELS["small_cnn"]()
    benchmark: WholeStream | None = None  # what it is trained on; tasks are resized to these images
    training: Training | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _is_trained_on_something(self) -> Self:
        if self.training is not None and self.benchmark is None:
            raise ValueError("training needs a benchmark: give probe_network.benchmark")
        if self.training is None and self.benchmark is not None:
            raise ValueError("a benchmark needs training: give probe_network.training, or leave the benchmark out")
        return self


class EmbeddingOptions(Options):
    """How a task is embedded, see `mas.embed`."""

    labels: Estimator = "hutchinson"
    steps: Count | None = None  # of labels: variational; None is the default of `mas.embed`
    weight_decay: Positive = 1e-3  # of the fitted head
    beta: Positive = BETA  # weight of the prior, in nats
    data: Literal["train", "test"] = "train"
    per_class: Count | None = None  # images of each class, drawn from the cell's seed; None is all
    parts: Count = 1  # the images are dealt out in so many parts; seed s takes part s modulo parts
    batch_size: Count = 128
    device: Device = "cpu"

    @model_validator(mode="after")
    def _takes_steps(self) -> Self:
        if self.steps is not None and self.labels != "variational":
            raise ValueError(f"steps are of labels: variational, not of {self.labels}: leave steps out")
        return self
