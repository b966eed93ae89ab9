"""Draw the pictures of images/ and write images.csv, which names them.

    python sample_data/draw.py [FOLDER]

Plain Python: a PNG is a header and zlib. The same pixels come out everywhere, and the same bytes with the same zlib.
"""

from __future__ import annotations

import math
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

SIZE = 128
HERE = Path(__file__).resolve().parent
Colour = tuple[int, int, int]
WHITE, INK, BLUE, RED, GREEN, GREY = (
    (255, 255, 255), (30, 30, 40), (60, 110, 200), (210, 70, 60), (60, 150, 90), (225, 225, 230),
)  # fmt: skip


def circle(x: int, y: int) -> Colour:
    return RED if math.hypot(x - 64, y - 64) < 44 else WHITE


def squares(x: int, y: int) -> Colour:
    return INK if (x // 16 + y // 16) % 2 else WHITE


def gradient(x: int, y: int) -> Colour:
    return x // 8 * 16, y // 8 * 16, 128


def bars(x: int, y: int) -> Colour:
    heights = (40, 75, 58, 104, 88)
    if y > 116:
        return INK
    bar, inside = divmod(x - 8, 23)
    return BLUE if 0 <= bar < 5 and inside < 16 and 116 - y < heights[bar] else WHITE


def sine(x: int, y: int) -> Colour:
    if abs(y - 64 - 40 * math.sin(x / 10)) < 2.5:
        return BLUE
    return GREY if y == 64 or x == 8 else WHITE


def rings(x: int, y: int) -> Colour:
    return GREEN if int(math.hypot(x - 64, y - 64)) // 8 % 2 else WHITE


def triangle(x: int, y: int) -> Colour:
    return GREEN if 20 < y < 108 and abs(x - 64) < (y - 20) / 2 else WHITE


def cells(x: int, y: int) -> Colour:
    """Dark spots of several sizes, as under a microscope."""
    for at in range(9):
        if math.hypot(x - (37 * at % 113 + 8), y - (53 * at % 109 + 10)) < 5 + at % 4 * 2:
            return 120, 40, 110
    return 245, 225, 240


PICTURES: dict[str, tuple[Callable[[int, int], Colour], str]] = {
    "circle": (circle, "A shape from a test of vision"),
    "squares": (squares, "A calibration pattern"),
    "gradient": (gradient, "A colour ramp"),
    "bars": (bars, "Jobs a day, Monday to Friday"),
    "sine": (sine, "A signal over time"),
    "rings": (rings, "An interference pattern"),
    "triangle": (triangle, "A shape from a test of vision"),
    "cells": (cells, "A stained sample"),
}


def png(paint: Callable[[int, int], Colour]) -> bytes:
    rows = b"".join(b"\0" + bytes(part for x in range(SIZE) for part in paint(x, y)) for y in range(SIZE))
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def main(folder: Path) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = ["name,image,caption"]
    for name, (paint, caption) in PICTURES.items():
        (folder / "images" / f"{name}.png").write_bytes(png(paint))
        lines.append(f'{name},images/{name}.png,"{caption}"')
    (folder / "images.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
