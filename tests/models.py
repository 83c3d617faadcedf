"""Whole models that people train, by size: small for the laws, as they are used for the speed table."""

from itertools import pairwise

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*(part for layer in layers[:-1] for part in (layer, nn.ReLU())), layers[-1])


def lenet(classes: int = 10) -> nn.Sequential:
    """LeNet-5 for one channel of 28 × 28 pixels."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *mlp(16 * 25, 120, 84, classes),
    )


def small_cnn(channels: int = 3, width: int = 32, pixels: int = 32, classes: int = 10) -> nn.Sequential:
    """Four convolutions and two linear layers: the small CNN of EWC and SI papers on CIFAR."""
    wide = 2 * width
    return nn.Sequential(
        *(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
        nn.MaxPool2d(2),
        *(nn.Conv2d(width, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(wide * (pixels // 4) ** 2, 4 * wide), nn.ReLU()),
        nn.Linear(4 * wide, classes),
    )


def resnet18(classes: int = 10) -> nn.Module:
    """Return torchvision's ResNet-18 with the stem for 32 × 32 pixels."""
    model = torchvision.models.resnet18(num_classes=classes)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


def vit(pixels: int = 32, patch: int = 4, depth: int = 6, heads: int = 4, width: int = 192, classes: int = 10):
    """Return torchvision's vision transformer: class token, position embedding, nn.MultiheadAttention."""
    model = torchvision.models.VisionTransformer(pixels, patch, depth, heads, width, 4 * width, num_classes=classes)
    nn.init.trunc_normal_(model.heads[0].weight, std=0.02)  # zeros, as torchvision has it, give no gradients
    return model


class GPT(nn.Module):
    """A causal transformer on tokens, its output layer tied to its embedding (as nanoGPT has it)."""

    def __init__(self, vocabulary: int = 256, length: int = 64, depth: int = 4, heads: int = 4, width: int = 128):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.out.weight = self.tokens.weight

    def forward(self, words: Tensor) -> Tensor:  # (N, T) -> (N, T, vocabulary)
        place = torch.arange(words.shape[1], device=words.device)
        return self.out(self.norm(self.blocks(self.tokens(words) + self.positions(place))))


class Block(nn.Module):
    """Attention by `scaled_dot_product_attention`, then an MLP, each scaled (LayerScale) and added."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.RMSNorm(width)
        self.qkv, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = (h.view(n, t, self.heads, -1).transpose(1, 2) for h in self.qkv(self.norm_1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, c)
        x = x + self.join(y)
        return x + self.scale * self.mlp(self.norm_2(x))


class LSTMClassifier(nn.Module):
    """Embedding, LSTM, and a linear layer on its last step."""

    def __init__(self, vocabulary: int = 256, width: int = 128, classes: int = 10):
        super().__init__()
        self.tokens, self.lstm = nn.Embedding(vocabulary, width), nn.LSTM(width, width, batch_first=True)
        self.out = nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:  # (N, T) -> (N, classes)
        return self.out(self.lstm(self.tokens(words))[0][:, -1])
