"""Make the exposures of the demo, as they are committed in ``raw/`` and ``calib/``: ``python observe.py``.

Five detectors in a row look at one field of stars, in eight visits through a changing sky. What a detector reads is the
sky's light through its pixels, with dark current, a bias that drifts from row to row, noise and cosmic rays; beside the
40 light-sensitive columns it reads 8 columns of overscan, which hold the bias alone. The random numbers are seeded: the
same files come out each time.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from images import Image, write_pfm, write_pgm

HERE = Path(__file__).parent
SEED = 20261122
DETECTORS = 5
VISITS = 8
SIZE = 40  # light-sensitive pixels along each side
OVERSCAN = 8  # columns
EXPOSURE_S = 30
GAIN = 1.6  # electrons per count
READ_NOISE = 4.0  # counts
SEEING = 1.3  # pixels, sigma of a star's image
STARS_PER_DETECTOR = 7
COSMIC_RAYS = 3  # per exposure


def make_weather(dice: random.Random) -> list[tuple[float, int]]:
    """For each visit, how much of the stars' light comes through, and how bright the sky itself is (counts)."""
    return [(round(dice.uniform(0.6, 1.0), 3), round(dice.uniform(150, 400))) for _ in range(VISITS)]


def star_light(dx: float, dy: float, flux: float) -> float:
    """The light of a star in a pixel that lies so far from its middle."""
    return flux * math.exp(-(dx * dx + dy * dy) / (2 * SEEING**2)) / (2 * math.pi * SEEING**2)


def place_stars(dice: random.Random) -> list[tuple[float, float, float]]:
    """Stars of one detector as (x, y, counts per exposure through a clear sky), well apart from each other."""
    stars: list[tuple[float, float, float]] = []
    while len(stars) < STARS_PER_DETECTOR:
        x, y = dice.uniform(6, SIZE - 7), dice.uniform(6, SIZE - 7)
        if all(math.hypot(x - other[0], y - other[1]) > 9 for other in stars):
            stars.append((round(x, 2), round(y, 2), round(10 ** dice.uniform(3.6, 4.6))))
    return stars


def expose(
    dice: random.Random,
    stars: list[tuple[float, float, float]],
    bias: Image,
    dark: Image,
    facts: dict[str, str],
    clearness: float,
    sky: float,
) -> Image:
    """What a detector reads at the end of an exposure."""
    shift_x, shift_y = int(facts["dx"]), int(facts["dy"])
    struck = {(dice.randrange(SIZE), dice.randrange(SIZE)): dice.uniform(900, 6000) for _ in range(COSMIC_RAYS)}
    pixels: list[float] = []
    for y in range(SIZE):
        level = 1000 + 15 * math.sin(y / 7) + dice.gauss(0, 2)
        for x in range(SIZE):
            light = clearness * sum(star_light(x - sx - shift_x, y - sy - shift_y, flux) for sx, sy, flux in stars)
            mean = light + sky * (1 + 0.0004 * (x - y)) + dark.pixels[y * SIZE + x] * EXPOSURE_S
            counted = dice.gauss(mean, math.sqrt(mean / GAIN)) + struck.get((x, y), 0)
            pixels.append(level + bias.pixels[y * SIZE + x] + counted + dice.gauss(0, READ_NOISE))
        pixels.extend(level + dice.gauss(0, READ_NOISE) for _ in range(OVERSCAN))
    return Image(SIZE + OVERSCAN, SIZE, pixels, facts)


def main() -> None:
    """Write everything."""
    dice = random.Random(SEED)
    raw, calib = HERE / "raw", HERE / "calib"
    raw.mkdir(exist_ok=True)
    calib.mkdir(exist_ok=True)
    weather = make_weather(dice)
    dithers = [(dice.randint(-2, 2), dice.randint(-2, 2)) for _ in range(VISITS)]
    catalogue: dict[str, list[tuple[float, float, float]]] = {}
    for detector in range(1, DETECTORS + 1):
        about = {"detector": str(detector)}
        bias = Image(SIZE, SIZE, [6 * math.cos(i % SIZE / 5) + dice.gauss(0, 1) for i in range(SIZE * SIZE)], about)
        dark = Image(SIZE, SIZE, [max(0.0, dice.gauss(0.4, 0.1)) for _ in range(SIZE * SIZE)], about)
        for _ in range(5):
            dark.pixels[dice.randrange(SIZE * SIZE)] = dice.uniform(10, 40)  # hot pixels
        catalogue[str(detector)] = place_stars(dice)
        write_pfm(calib / f"bias_d{detector}.pfm", bias)
        write_pfm(calib / f"dark_d{detector}.pfm", dark)
        for visit, ((clearness, sky), (dx, dy)) in enumerate(zip(weather, dithers, strict=True), start=1):
            facts = {"visit": str(visit), **about, "exptime": str(EXPOSURE_S), "dx": str(dx), "dy": str(dy)}
            image = expose(dice, catalogue[str(detector)], bias, dark, facts, clearness, sky)
            write_pgm(raw / f"v{visit}_d{detector}.pgm", image)
    text = json.dumps({"star": ["x", "y", "counts"], "detectors": catalogue}, indent=1)
    (calib / "catalogue.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
