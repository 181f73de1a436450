"""A small residual network for small images (He et al. 2016, arXiv:1512.03385 and 1603.05027).

For large images, replace it by a pretrained one; the task only asks for logits.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions, each after normalisation and activation, added to what came in.

    Args:
        channels_in: of the input.
        channels_out: of the output.
        stride: 2 halves height and width.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        out = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return out + self.shortcut(active if not isinstance(self.shortcut, nn.Identity) else x)


class ResNet(nn.Module):
    """A stem, stages of residual blocks that halve the image and double the channels, and one mean per channel.

    Args:
        num_classes: logits per image.
        width: channels of the first stage.
        depths: blocks of each stage.
    """

    def __init__(self, num_classes: int, width: int = 16, depths: tuple[int, ...] = (1, 1, 1)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate(depths):
            for number in range(depth):
                first = stage > 0 and number == 0
                blocks.append(Residual(channels, width * 2**stage, stride=2 if first else 1))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, num_classes] of images, float [N, 3, H, W] around zero."""
        features = F.relu(self.norm(self.blocks(self.stem(images))))
        return self.head(features.mean(dim=(2, 3)))
