"""A recognition task that tells pruning methods apart: Chinese characters in many faces, scanned badly.

python benchmarks/glyphs.py FOLDER [--classes 250] [--size 32] [--copies 2] [--clean] [--folder] [--fonts FOLDER]
python benchmarks/glyphs.py --check         (no images, but a table: is a design that is tested on among the others?)

FOLDER gets glyphs.safetensors, which a recipe reads (data.name glyphs, data.root FOLDER); with --folder PNG files, for
data.name folder. Trained on are 56 faces, tested on 16 of other designs; they come out of Debian's packages (690 MB).
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from glyph_images.characters import chosen
from glyph_images.faces import PARTS, Part, listed
from glyph_images.leaks import compared
from glyph_images.making import Located, MadeParts, Wanted, each_made
from glyph_images.packages import font, unpacked
from glyph_images.scanning import Scan
from glyph_images.writing import check_place, write_file, write_folder

from nas_prune.base.errors import DataError, NasPruneError
from nas_prune.base.files.cache import cache_folder
from nas_prune.train.record.progress import Bars


def main() -> int:
    """The exit code: 0, or that of the error that is told."""
    arguments = asked()
    try:
        with Bars() as bars:
            carry_out(arguments, bars)
    except NasPruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def asked() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, metavar="FOLDER", help="where the images go")
    parser.add_argument("--classes", type=int, default=250, help="characters, the easiest to have first (250)")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels (32)")
    parser.add_argument("--copies", type=int, help="scans of each glyph (2; clean: 1)")
    parser.add_argument("--clean", action="store_true", help="glyphs as drawn, without a scanner's faults")
    parser.add_argument("--folder", action="store_true", help="PNG files in train/ and test/, a folder for each class")
    parser.add_argument("--fonts", type=Path, help="folder for the packages (fonts/ in $NAS_PRUNE_CACHE)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="they change no image")
    parser.add_argument("--check", action="store_true", help="compare the designs, write nothing")
    arguments = parser.parse_args()
    if (arguments.out is None) is not arguments.check:
        parser.error("say either in which FOLDER the images go, or --check")
    if min(arguments.size, arguments.processes, arguments.copies or 1) < 1 or arguments.size < 8:
        parser.error("--size must be 8 or more, --copies and --processes 1 or more")
    return arguments


def carry_out(arguments: argparse.Namespace, bars: Bars) -> None:
    """Make the images and write them, or check the designs."""
    characters, plain = chosen(arguments.classes), arguments.clean or arguments.check
    if not arguments.check:
        check_place(arguments.out, folder=arguments.folder)
    folders = unpacked(listed().packages, arguments.fonts or cache_folder() / "fonts", bars.follow)
    copies = arguments.copies or (1 if plain else 2)
    wanted = Wanted(characters, arguments.size, copies, None if plain else Scan())
    parts = {part: [(face, font(folders[face.package], face.file)) for face in listed().part(part)] for part in PARTS}
    made = draw(parts, wanted, arguments.processes, bars)
    if arguments.check:
        report(made)
    else:
        (write_folder if arguments.folder else write_file)(arguments.out, wanted, made)
        counts = [sum(len(of.labels) for _, of in made[part]) for part in PARTS]
        bars.say(f"{counts[0]} images to train on and {counts[1]} to test on are in {arguments.out}")


def draw(parts: Mapping[Part, Sequence[Located]], wanted: Wanted, processes: int, bars: Bars) -> MadeParts:
    """The images of every face, by part."""
    faces = [located for part in PARTS for located in parts[part]]
    bar, made = bars.bar("drawing faces", len(faces)), []
    with each_made(faces, wanted, processes) as each:
        for (face, _), of in zip(faces, each, strict=True):
            made.append((face, of))
            bar.advance()
    split = len(parts["train"])
    return {"train": made[:split], "test": made[split:]}


def report(made: MadeParts) -> None:
    """A line for each face and the means. Raises DataError where a design that is tested on is among the others."""
    rows = {part: compared(made[part], made["train"]) for part in PARTS}
    print(
        f"{'part':<6}{'family':<12}{'design':<9}{'face':<28}{'top-1':>7}  {'alike':>5}  {'same':>6}  nearest of another"
    )
    for part in PARTS:
        for row in rows[part]:
            print(f"{part:<6}{row.face.family:<12}{row.face.design:<9}{row.face.name:<28}{row.top1:>7.1%}  ", end="")
            print(f"{row.alike:>5.2f}  {row.same:>6.1%}  {row.nearest}")
        top1, alike = (mean(getattr(row, name) for row in rows[part]) for name in ("top1", "alike"))
        print(f"{part:<6}{'mean':<49}{top1:>7.1%}  {alike:>5.2f}\n")
    leaking = [
        f"{row.face.name} ({row.same:.0%} as in training, nearest {row.nearest})" for row in rows["test"] if row.leaks
    ]
    if leaking:
        raise DataError(f"tested on, but hardly a design of its own: {', '.join(leaking)}; mend faces.yaml")


if __name__ == "__main__":
    sys.exit(main())
