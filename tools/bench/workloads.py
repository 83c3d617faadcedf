"""What is measured on: models as people use them, with data of their shape."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.models import mlp, resnet18, small_cnn, vit


@dataclass(frozen=True)
class Workload:
    """A model with random data: `batches` batches of `size` samples, ten classes."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    size: int
    batches: int
    target: float | None = None  # what exact importance may cost, in plain passes

    def model(self, device: str) -> nn.Module:
        """Return the model, with the same weights each time."""
        torch.manual_seed(0)
        return self.build().eval().to(device)

    def data(self, device: str, size: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return the batches, the same each time.

        Args:
            device: for the tensors.
            size: of a batch, in place of its own.
        """
        g = torch.Generator().manual_seed(0)
        n = size or self.size
        pairs = [
            (torch.randn(n, *self.shape, generator=g), torch.randint(10, (n,), generator=g))
            for _ in range(self.batches)
        ]
        return [(x.to(device), y.to(device)) for x, y in pairs]


IMAGE = (3, 32, 32)
WORKLOADS = {
    "MLP 784-1000-1000-10": Workload(lambda: mlp(784, 1000, 1000, 10), (784,), 128, 16, 1.1),
    "small CNN": Workload(small_cnn, IMAGE, 64, 4, 1.4),
    "ResNet-18": Workload(resnet18, IMAGE, 32, 2, 1.5),
    "ViT (depth 6, width 192)": Workload(vit, IMAGE, 32, 4, 1.6),
}
STEPS = {  # "batches" are the steps in one timing
    "MLP 784-400-400-10": Workload(lambda: mlp(784, 400, 400, 10), (784,), 128, 30),
    "MLP 784-1000-1000-10": Workload(lambda: mlp(784, 1000, 1000, 10), (784,), 128, 10),
    "small CNN": Workload(small_cnn, IMAGE, 128, 1),
}
QUICK = {
    "MLP 20-16-10": Workload(lambda: mlp(20, 16, 10), (20,), 8, 2),
    "tiny CNN": Workload(lambda: small_cnn(width=4, pixels=8), (3, 8, 8), 4, 1),
}
