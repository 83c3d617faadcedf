"""Changes to whole batches of images that make one task out of another: functions of (B, C, H, W)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate


@dataclass(frozen=True)
class Permutation:
    """Show the pixels in another order, the same one in each channel."""

    order: Tensor  # shape (H·W,)

    def __call__(self, x: Tensor) -> Tensor:
        """Return images of the same shape."""
        return x.flatten(2)[:, :, self.order.to(x.device)].reshape(x.shape)


@dataclass(frozen=True)
class Rotation:
    """Rotate counterclockwise by an angle; what comes in at the corners is 0."""

    degrees: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return images of the same shape."""
        return rotate(x, self.degrees, InterpolationMode.BILINEAR)


@dataclass(frozen=True)
class Inverted:
    """Show light for dark: v becomes 1 − v."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return images of the same shape."""
        return 1 - x


@dataclass(frozen=True)
class Resized:
    """Resize to a height and width, unless that is None, and repeat a grey channel."""

    channels: int
    size: int | None

    def __call__(self, x: Tensor) -> Tensor:
        """Return images of shape (B, channels, size, size)."""
        if self.size and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return x.expand(-1, self.channels, -1, -1) if x.shape[1] == 1 else x


@dataclass(frozen=True)
class Padded:
    """Add black pixels on each side."""

    pixels: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return images that are larger by ``2 * pixels`` in height and width."""
        return F.pad(x, (self.pixels,) * 4)
