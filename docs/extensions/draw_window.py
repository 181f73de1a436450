"""Draw `_static/window.svg`: what happens within one optimizer step of four micro-batches.

    python docs/extensions/draw_window.py

The drawing is kept in the repository; `tests/docs/test_site.py` holds that it is what this program draws.
"""

from pathlib import Path

TARGET = Path(__file__).parents[1] / "_static" / "window.svg"

_WIDTH, _COLUMN, _LEFT, _TOP = 760, 150, 130, 54
_ROWS = (
    ("forward", "training_step", "#4c78a8"),
    ("backward", "backward", "#72b7b2"),
)
_AT_END = ("divide by Σ weight", "on_before_optimizer_step", "clip", "optimizer.step", "scheduler.step")


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12, weight: str = "normal") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">{text}</text>'


def _box(x: float, y: float, width: float, height: float, color: str, text: str) -> str:
    frame = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{color}" fill-opacity="0.25"'
    return f'{frame} stroke="{color}"/>' + _text(x + width / 2, y + height / 2 + 4, text)


def draw(micro_batches: int = 4) -> str:
    """Return the drawing as SVG; colours of text follow the page, light or dark."""
    parts: list[str] = []
    height = _TOP + 2 * 44 + 10 + 34 * len(_AT_END)
    inner = _COLUMN - 14
    for number in range(micro_batches):
        x = _LEFT + number * _COLUMN
        parts.append(_text(x + inner / 2, 20, f"micro-batch {number + 1}", weight="bold"))
        for row, (_, label, color) in enumerate(_ROWS):
            parts.append(_box(x, _TOP - 22 + row * 44, inner, 32, color, label))
    parts.append(_text(_LEFT - 12, 20, "window opens", anchor="end", size=11))
    parts.append(_box(8, _TOP - 22, _LEFT - 24, 32, "#b279a2", "zero_grad"))
    end = _LEFT + (micro_batches - 1) * _COLUMN
    base = _TOP + 2 * 44 + 16
    parts.append(_text(end - 40, base + 6, "window complete", anchor="end", size=11))
    for row, label in enumerate(_AT_END):
        parts.append(_box(end - 30, base - 12 + row * 34, inner + 30, 26, "#e45756", label))
    gradients = _TOP + 2 * 44 - 6
    parts.append(
        f'<path d="M {_LEFT} {gradients} H {end + inner}" stroke="currentColor" stroke-dasharray="4 3" fill="none"/>'
    )
    parts.append(_text(_LEFT, gradients + 16, "gradients add up", anchor="start", size=11))
    title = "<title>One optimizer step of four micro-batches</title>"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" fill="currentColor" '
        f'font-family="sans-serif">{title}\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
