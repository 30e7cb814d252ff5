"""Image files: looked at before a run begins, and read alike ever after.

The look is at a file's head, where its format, size and kind of pixels are, and at its end, which a truncated file does
not have; only one that does not end as its format does is decoded. What is wrong is raised with the name of the file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from nas_prune.base.errors import DataError, first_line
from nas_prune.base.follow import Follow

SUFFIXES = (*IMG_EXTENSIONS, ".gif")
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
BAD = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)  # of what Pillow cannot read
THREADS, CHUNK, MANY = 8, 1000, 10_000
MOST_NAMED = 3
ADVICE = "mend or remove what cannot be read, or set data.unreadable: skip"


def has_suffix(path: str) -> bool:
    """Whether a file is called like an image."""
    return path.lower().endswith(SUFFIXES)


def read(path: str) -> Image.Image:
    """The image in a file, of a GIF the first frame, in R, G, B. Raises DataError, which names the file."""
    try:
        with _opened(path) as image:
            return in_colour(image)
    except BAD as error:
        raise DataError(f"the image {path} cannot be read ({_why(error)}); {ADVICE}") from error


def decoded(image: Image.Image) -> Image.Image:
    """``in_colour`` of an image that a dataset has opened. Raises DataError where it cannot be read."""
    try:
        return in_colour(image)
    except BAD as error:
        name = getattr(image, "filename", "") or "of the dataset"
        raise DataError(f"the image {name} cannot be read ({_why(error)}); mend or remove it") from error


def in_colour(image: Image.Image) -> Image.Image:
    """8 bits of R, G, B; 16 bits of grey are scaled. Raises ValueError for pixels of no known range."""
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise ValueError(f"its pixels are {pixels.min()} to {pixels.max()}, save them as 8 or 16 bits")
        image = Image.fromarray(np.rint(pixels / 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range, save them as 8 or 16 bits")
    return image.convert("RGB")


def unreadable(paths: Sequence[str], follow: Follow[int]) -> dict[int, str]:
    """Place -> what is wrong, of every file that cannot be read; the look is a quick one.

    ``follow``: shows how far it is, where there are many files.
    """
    found: dict[int, str] = {}
    starts: Iterable[int] = range(0, len(paths), CHUNK)
    with ThreadPoolExecutor(THREADS) as pool:
        for start in follow(starts, "looking at images") if len(paths) > MANY else starts:
            looks = pool.map(_wrong_with, paths[start : start + CHUNK])
            found |= {place: wrong for place, wrong in enumerate(looks, start) if wrong}
    return found


def told(paths: Sequence[str], wrong: Mapping[int, str]) -> str:
    """Files that cannot be read, in a sentence that has the first of them."""
    first = [f"{paths[place]} ({wrong[place]})" for place in sorted(wrong)[:MOST_NAMED]]
    more = [f"{len(wrong) - MOST_NAMED} more"] if len(wrong) > MOST_NAMED else []
    return f"{len(wrong)} of {len(paths)} images cannot be read: {', '.join([*first, *more])}"


def _wrong_with(path: str) -> str:
    """Why a file cannot be read; empty if, as far as a quick look tells, it can."""
    try:
        with _opened(path) as image:
            if image.mode in ("F", "I"):
                in_colour(image)
            if not _ends(path, str(image.format)):
                image.load()
    except BAD as error:
        return _why(error)
    return ""


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """The file as an image whose head has been read."""
    if not Path(path).stat().st_size:
        raise ValueError("it is empty")
    with Image.open(path) as image:
        yield image


def _ends(path: str, form: str) -> bool:
    """Whether a file ends as its format does; of most formats nobody knows."""
    end = ENDS.get(form, b"")
    with Path(path).open("rb") as file:
        file.seek(-max(len(end), 1), 2)
        return bool(end) and file.read() == end


def _why(error: BaseException) -> str:
    """What Pillow says, without the name of the file, or of the object, that a message has already."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format"
    return first_line(error) or type(error).__name__
