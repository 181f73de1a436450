"""Draws small images of circles, squares and triangles: data to try the project with before yours are there.

Size, place, turn and colours are drawn at random and noise is added, so that it has to be learned, but a small network
gets nearly all of it right.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

CLASSES = ("circle", "square", "triangle")
SUPERSAMPLING = 3  # each pixel is the mean of 3 x 3 points, which gives soft edges


def draw(kind: str, generator: np.random.Generator, size: int = 32) -> np.ndarray:
    """Draw one shape.

    Args:
        kind: one of `CLASSES`.
        generator: of everything that is random.
        size: height and width in pixels.

    Returns:
        uint8 [size, size, 3].
    """
    points = (np.arange(size * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    radius = generator.uniform(0.2, 0.38) * size
    middle = generator.uniform(radius, size - radius, size=2)
    angle = generator.uniform(0, 2 * np.pi)
    across, down = np.meshgrid(points - middle[0], points - middle[1])
    x = across * np.cos(angle) + down * np.sin(angle)
    y = down * np.cos(angle) - across * np.sin(angle)
    inside = {
        "circle": x**2 + y**2 <= (0.8 * radius) ** 2,
        "square": np.maximum(abs(x), abs(y)) <= radius / np.sqrt(2),
        "triangle": (y <= radius / 2) & (np.sqrt(3) * abs(x) - y <= radius),
    }[kind]
    cover = inside.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean(axis=(1, 3))[..., None]
    background, colour = generator.uniform(0, 110, size=3), generator.uniform(145, 255, size=3)
    picture = cover * colour + (1 - cover) * background + generator.normal(0, 12, size=(size, size, 3))
    return picture.round().clip(0, 255).astype(np.uint8)


def write(root: str | Path, train: int = 500, val: int = 100, size: int = 32, seed: int = 0) -> Path:
    """Write `train` and `val` images of each class as `root/<split>/<class>/<number>.npy`, and return the folder.

    Every image has random numbers of its own, so that more of them never changes the first ones.
    """
    root = Path(root)
    for split, count in enumerate((train, val)):
        for label, kind in enumerate(CLASSES):
            folder = root / ("train", "val")[split] / kind
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image = draw(kind, np.random.default_rng([seed, split, label, number]), size)
                np.save(folder / f"{number:05d}.npy", image)
    return root


def main() -> None:
    """Write the shapes that the command line asks for."""
    parser = argparse.ArgumentParser(description="Draw images of circles, squares and triangles.")
    parser.add_argument("root", help="folder to write to")
    parser.add_argument("--train", type=int, default=500, help="training images of each class")
    parser.add_argument("--val", type=int, default=100, help="validation images of each class")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0)
    print(write(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
