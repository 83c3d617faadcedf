"""How an expert is adapted to a new task, to measure how well it serves as a start."""

from mas.annotations import Count, Positive
from mas.experiments.options import Options


class FineTuning(Options):
    """Training of a whole expert on a new task, see `mas.task2vec.reachability`."""

    steps: Count = 100
    lr: Positive = 0.01  # constant; SGD with momentum 0.9
    batch_size: Count = 32


class TransferOptions(Options):
    """How an expert is adapted to a new task: a head is fitted to its frozen features, or all of it is fine-tuned."""

    per_class: Count | None = None  # training images of each class of the new task, drawn by the seed; None is all
    weight_decay: Positive = 1e-3  # of the fitted head
    fine_tune: FineTuning | None = None  # None: the features are frozen
