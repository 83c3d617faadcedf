"""A small probe, tasks for it, and embeddings by hand, for the tests of Task2Vec."""

import torch
from torch import nn

from mas import TaskEmbedding


class Probe(nn.Module):
    """A convolution, a transposed convolution, BatchNorm, a linear layer, and a head called fc."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.up = nn.ConvTranspose2d(3, 2, 2)
        self.hidden = nn.Linear(2 * 5 * 5, 6)
        self.fc = nn.Linear(6, 10)
        self.drop = nn.Dropout()

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        x = self.up(x).relu().flatten(1)
        return self.fc(self.drop(self.hidden(x).relu()))


def probe():
    torch.manual_seed(0)
    made = Probe().double().train()
    made.norm.running_mean.normal_()
    made.norm.running_var.uniform_(0.5, 2)
    return made


def task(seed=0, samples=30, classes=3, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.arange(samples) % classes
    return [(x + shift + y[:, None, None, None] * 0.5, y)]


def split(batches, size):
    ((x, y),) = batches
    return list(zip(x.split(size), y.split(size), strict=True))


def linear_probe():
    """Return a linear layer before a head: softmax regression in x, whose Fisher information has a closed form."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 2)).double()


def linear_task(samples=60, classes=3):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(samples, 5, generator=generator, dtype=torch.float64)
    y = torch.arange(samples) % classes
    x[:, 0] += y
    return x, y


def embedding(*values, probe="p", scale=1.0, **fields):
    vector = torch.tensor(values, dtype=torch.float64)
    return TaskEmbedding(vector, torch.full_like(vector, scale), probe, **fields)


def random_embeddings(count, filters=20, beta=1e-9):
    """Return embeddings of one probe: F over three decades, and a prior that differs between two layers."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.full((filters,), 0.1, dtype=torch.float64)
    scale[filters // 2 :] = 0.02
    made = []
    for number in range(count):
        vector = 10 ** (3 * torch.rand(filters, generator=generator, dtype=torch.float64) - 2)
        made.append(TaskEmbedding(vector, scale, "p", task=f"task {number}", beta=beta))
    return made
