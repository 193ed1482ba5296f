"""The steps of the demo, one job each: ``python pipeline.py STEP [VISIT] [DETECTOR]``.

``init`` looks that everything is there; ``isr`` takes the detector's signature out of an exposure; ``calibrate``
measures a visit's sky and zero point; ``coadd`` stacks a detector's visits; ``mosaic`` puts the detectors side by
side; ``final`` sums up. The working folder holds ``raw`` and ``calib`` and takes what is made. The standard library
is all they need.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from images import BrokenImage, Image, read, write_pfm, write_pgm

SIZE = 40
DETECTORS = range(1, 6)
VISITS = range(1, 9)
COSMIC_RAY_SIGMA = 6.0
"""A pixel so far above its neighbours was struck by a cosmic ray."""
RESAMPLES = 4000
"""How often the sky is drawn anew for the error of its level."""
APERTURE = 4
"""Radius in pixels of the circle in which a star's light is summed."""
CLIP_SIGMA = 3.0


class CannotGoOn(Exception):
    """Why a step ends without result."""


def say(text: str) -> None:
    """One line of the job's log, which is its standard error."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


# -- steps -------------------------------------------------------------------------------------------------------------


def init(folder: Path) -> None:
    """Look for every input, and make the folders for what comes."""
    wanted = [f"raw/v{visit}_d{detector}.pgm" for visit in VISITS for detector in DETECTORS]
    wanted += [f"calib/{kind}_d{detector}.pfm" for kind in ("bias", "dark") for detector in DETECTORS]
    missing = [name for name in [*wanted, "calib/catalogue.json"] if not (folder / name).is_file()]
    if missing:
        raise CannotGoOn(f"{len(missing)} inputs are missing in {folder}: {', '.join(missing)}")
    for name in ("isr", "calibrate", "coadd"):
        (folder / name).mkdir(exist_ok=True)
    say(f"{len(wanted) + 1} inputs are there")


def isr(folder: Path, visit: int, detector: int) -> None:
    """Instrument signature removal: bias, dark current and cosmic rays out of one exposure."""
    path = folder / "raw" / f"v{visit}_d{detector}.pgm"
    say(f"reading {path}")
    raw = read(path)
    bias = read(folder / "calib" / f"bias_d{detector}.pfm")
    dark = read(folder / "calib" / f"dark_d{detector}.pfm")
    exposure_s = float(raw.facts["exptime"])
    pixels: list[float] = []
    for y in range(SIZE):
        row = raw.row(y)
        level = statistics.median(row[SIZE:])
        pixels += [
            row[x] - level - bias.pixels[y * SIZE + x] - dark.pixels[y * SIZE + x] * exposure_s for x in range(SIZE)
        ]
    say(f"took off overscan, bias and {exposure_s:g} s of dark current")
    image = Image(SIZE, SIZE, pixels, raw.facts)
    struck = sum(mend_cosmic_rays(image) for _ in range(4))
    say(f"mended {struck} pixels that cosmic rays had struck")
    sky, noise = clipped(image.pixels)
    error = bootstrap_error(image.pixels, seed=100 * visit + detector)
    say(f"sky {sky:.2f} +- {error:.2f} counts, noise {noise:.2f} counts per pixel")
    image.facts |= {"sky": f"{sky:.3f}", "sky_error": f"{error:.3f}", "noise": f"{noise:.3f}"}
    write_pfm(folder / "isr" / f"v{visit}_d{detector}.pfm", image)


def calibrate(folder: Path, visit: int) -> None:
    """How clear the sky was in a visit: the stars' light compared with the catalogue's."""
    catalogue = json.loads((folder / "calib" / "catalogue.json").read_text(encoding="utf-8"))["detectors"]
    ratios: list[float] = []
    skies: list[float] = []
    for detector in DETECTORS:
        image = read(folder / "isr" / f"v{visit}_d{detector}.pfm")
        skies.append(float(image.facts["sky"]))
        for x, y, counts in catalogue[str(detector)]:
            at_x, at_y = x + float(image.facts["dx"]), y + float(image.facts["dy"])
            light = aperture_light(image, at_x, at_y)
            ratios.append(light / counts)
            say(f"detector {detector}: star at {at_x:.1f}, {at_y:.1f}: {light:.0f} counts of {counts:.0f}")
    clearness, spread = clipped(ratios)
    zero_point = 2.5 * math.log10(clearness)
    say(f"zero point {zero_point:+.3f} mag from {len(ratios)} stars (they differ by {spread:.3f})")
    result = {
        "visit": visit,
        "sky": round(statistics.mean(skies), 2),
        "clearness": round(clearness, 4),
        "zero_point": round(zero_point, 4),
        "stars": len(ratios),
    }
    write_json(folder / "calibrate" / f"v{visit}.json", result)


def coadd(folder: Path, detector: int) -> None:
    """One deep image of what a detector saw: the visits brought to one place and one scale, outliers left out."""
    layers: list[Image] = []
    for visit in VISITS:
        image = read(folder / "isr" / f"v{visit}_d{detector}.pfm")
        known = json.loads((folder / "calibrate" / f"v{visit}.json").read_text(encoding="utf-8"))
        layers.append(aligned(image, float(image.facts["sky"]), known["clearness"]))
    left_out = 0
    pixels: list[float] = []
    for column in zip(*(layer.pixels for layer in layers), strict=True):
        seen = [value for value in column if not math.isnan(value)]
        kept = without_outliers(seen)
        left_out += len(seen) - len(kept)
        pixels.append(statistics.fmean(kept) if kept else 0.0)
    _, noise = clipped(pixels)
    say(f"stacked {len(layers)} visits, left out {left_out} values; noise {noise:.2f} counts per pixel")
    facts = {"detector": str(detector), "visits": str(len(layers)), "noise": f"{noise:.3f}"}
    write_pfm(folder / "coadd" / f"d{detector}.pfm", Image(SIZE, SIZE, pixels, facts))


def mosaic(folder: Path) -> None:
    """The whole field as one picture for people: bright where there is light, faint things made visible."""
    parts = [read(folder / "coadd" / f"d{detector}.pfm") for detector in DETECTORS]
    noise = statistics.mean(float(part.facts["noise"]) for part in parts)
    pixels: list[float] = []
    for y in range(SIZE):
        for part in parts:
            pixels += [65535 * math.asinh(max(0.0, value + 2 * noise) / noise) / 7 for value in part.row(y)]
    picture = Image(SIZE * len(parts), SIZE, pixels, {"noise": f"{noise:.3f}"})
    write_pgm(folder / "mosaic.pgm", picture)
    say(f"wrote {folder / 'mosaic.pgm'}: {picture.width} x {picture.height} pixels")


def final(folder: Path) -> None:
    """Sum up what there is, whether all went well or not: a final job always runs."""
    exposures = sorted(path.stem for path in (folder / "isr").glob("*.pfm"))
    visits = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "calibrate").glob("*.json"))]
    picture = folder / "mosaic.pgm"
    summary = {
        "complete": picture.is_file(),
        "exposures": len(exposures),
        "exposures_expected": len(VISITS) * len(DETECTORS),
        "visits": visits,
        "mosaic_sha256": hashlib.sha256(picture.read_bytes()).hexdigest() if picture.is_file() else None,
    }
    write_json(folder / "summary.json", summary)
    say(f"{summary['exposures']} of {summary['exposures_expected']} exposures, {len(visits)} visits calibrated")


# -- what they compute with --------------------------------------------------------------------------------------------


def clipped(values: Sequence[float]) -> tuple[float, float]:
    """The median of values and their spread, as if no stars or strikes were among them."""
    kept = list(values)
    middle = spread = 0.0
    for _ in range(5):
        middle = statistics.median(kept)
        spread = 1.4826 * statistics.median(abs(value - middle) for value in kept)
        kept = [value for value in kept if abs(value - middle) <= CLIP_SIGMA * spread] or kept
    return middle, spread


def without_outliers(values: Sequence[float]) -> list[float]:
    """The values without those far from the others."""
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in values) or 1.0
    return [value for value in values if abs(value - middle) <= 2 * CLIP_SIGMA * spread]


def mend_cosmic_rays(image: Image) -> int:
    """Put the neighbours' median in place of each pixel that stands out sharply; returns how many did.

    A cosmic ray lights single pixels, while a star's light is spread by the air: its sharpest pixel has neighbours of a
    like brightness.
    """
    _, noise = clipped(image.pixels)
    mended: dict[int, float] = {}
    for y in range(SIZE):
        for x in range(SIZE):
            value = image.pixels[y * SIZE + x]
            around = [
                image.pixels[v * SIZE + u]
                for v in range(max(0, y - 1), min(SIZE, y + 2))
                for u in range(max(0, x - 1), min(SIZE, x + 2))
                if (u, v) != (x, y)
            ]
            middle = statistics.median(around)
            excess = value - middle
            if excess > COSMIC_RAY_SIGMA * noise and excess > 2.5 * (sorted(around)[-2] - min(around)):
                mended[y * SIZE + x] = middle
    for at, value in mended.items():
        image.pixels[at] = value
    return len(mended)


def bootstrap_error(pixels: Sequence[float], seed: int) -> float:
    """How far the level of the sky may be off: its spread over samples drawn anew from the same pixels."""
    dice = random.Random(seed)
    return statistics.stdev(statistics.median(dice.choices(pixels, k=len(pixels))) for _ in range(RESAMPLES))


def aperture_light(image: Image, at_x: float, at_y: float) -> float:
    """The light within a circle, less the sky's."""
    sky, total = float(image.facts["sky"]), 0.0
    for y in range(max(0, math.floor(at_y) - APERTURE), min(SIZE, math.floor(at_y) + APERTURE + 2)):
        for x in range(max(0, math.floor(at_x) - APERTURE), min(SIZE, math.floor(at_x) + APERTURE + 2)):
            if math.hypot(x - at_x, y - at_y) <= APERTURE:
                total += image.pixels[y * SIZE + x] - sky
    return total


def aligned(image: Image, sky: float, clearness: float) -> Image:
    """The image without sky, as through a clear one, moved back by its dither; NaN where nothing was seen."""
    dx, dy = int(image.facts["dx"]), int(image.facts["dy"])
    pixels: list[float] = []
    for y in range(SIZE):
        for x in range(SIZE):
            inside = 0 <= x + dx < SIZE and 0 <= y + dy < SIZE
            value = image.pixels[(y + dy) * SIZE + x + dx] if inside else math.nan
            pixels.append((value - sky) / clearness)
    return Image(SIZE, SIZE, pixels)


def write_json(path: Path, content: object) -> None:
    """Write a result, the whole of it or nothing."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


STEPS = {step.__name__: step for step in (init, isr, calibrate, coadd, mosaic, final)}


def main() -> None:
    """Run the step that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("numbers", type=int, nargs="*", metavar="NUMBER", help="visit and detector, as the step wants")
    given = parser.parse_args()
    try:
        STEPS[given.step](Path.cwd(), *given.numbers)
    except (BrokenImage, CannotGoOn, OSError) as exc:
        say(f"{given.step} failed: {exc}")
        sys.exit(1)


if __name__ == "__main__":
    main()
