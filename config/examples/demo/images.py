"""Read and write small images: PGM for pixels as a detector counts them, PFM for pixels as we compute them.

Both are plain formats (https://netpbm.sourceforge.net/doc/pgm.html, https://netpbm.sourceforge.net/doc/pfm.html): a few
lines of header, then the pixels as they lie in memory. The header's comments carry ``key=value`` facts of the exposure.
"""

from __future__ import annotations

__all__ = ["BrokenImage", "Image", "read", "write_pfm", "write_pgm"]

import array
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

_HEADER = re.compile(rb"(P5|Pf)\n((?:#[^\n]*\n)*)(\d+) (\d+)\n([-+.0-9]+)\n")


class BrokenImage(Exception):
    """A file does not hold the image that its header promises."""


@dataclass(slots=True)
class Image:
    """Pixels row by row from the top, and what is known about them."""

    width: int
    height: int
    pixels: list[float]
    facts: dict[str, str] = field(default_factory=dict)

    def row(self, y: int) -> list[float]:
        """One row of pixels."""
        return self.pixels[y * self.width : (y + 1) * self.width]


def read(path: Path) -> Image:
    """Read a PGM of 16 bits or a PFM.

    Raises
    ------
    BrokenImage
        If the file is no such image, or not all of one.
    OSError
        If it cannot be read.
    """
    data = path.read_bytes()
    header = _HEADER.match(data)
    if header is None:
        raise BrokenImage(f"{path} does not begin like a PGM or PFM image: {data[:20]!r}")
    kind, comments, width, height = header[1], header[2].decode(), int(header[3]), int(header[4])
    values = array.array("H" if kind == b"P5" else "f")
    promised, held = width * height * values.itemsize, len(data) - header.end()
    if promised != held:
        raise BrokenImage(
            f"{path}: the header promises {width} x {height} pixels, {promised} bytes, and {held} bytes follow it. "
            "Was its transfer cut short? Copy it again"
        )
    values.frombytes(data[header.end() :])
    if (kind == b"P5") == (sys.byteorder == "little"):  # PGM is big-endian; ours of PFM are little-endian
        values.byteswap()
    facts = dict(re.findall(r"(\w+)=(\S+)", comments))
    return Image(width, height, list(values), facts)


def _write(path: Path, kind: str, scale: str, image: Image, values: array.array[int] | array.array[float]) -> None:
    """Write the whole file or nothing: who reads it while we write finds the old one, or none."""
    comments = "".join(f"# {key}={value}\n" for key, value in image.facts.items())
    header = f"{kind}\n{comments}{image.width} {image.height}\n{scale}\n"
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(header.encode() + values.tobytes())
    unfinished.replace(path)


def write_pgm(path: Path, image: Image) -> None:
    """Write pixels from 0 to 65535 as a PGM."""
    values = array.array("H", (min(65535, max(0, round(value))) for value in image.pixels))
    if sys.byteorder == "little":
        values.byteswap()
    _write(path, "P5", "65535", image, values)


def write_pfm(path: Path, image: Image) -> None:
    """Write pixels of any value as a PFM (top row first, as all of ours)."""
    values = array.array("f", image.pixels)
    if sys.byteorder == "big":
        values.byteswap()
    _write(path, "Pf", "-1.0", image, values)
