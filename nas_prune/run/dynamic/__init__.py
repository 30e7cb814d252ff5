"""Models that skip, image by image, what the image does not call for: released, and measured one image at a time."""

from nas_prune.run.dynamic.release import release

__all__ = ["release"]
