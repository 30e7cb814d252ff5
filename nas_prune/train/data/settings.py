"""The section of a recipe about data."""

from typing import Literal

from pydantic import Field, PositiveInt

from nas_prune.base.settings import Settings, Share, Spread, Triple


class DataSettings(Settings):
    """The dataset, its image size and its augmentation."""

    name: str = Field(
        "digits",
        description="digits, fashion_mnist, glyphs, generated, folder, or of timm (torch/..., hfds/..., wds/...)",
    )
    root: str | None = Field(None, description="folder that holds the data")
    image_size: PositiveInt = Field(
        32,
        description="height and width that the model sees, in pixels; left out for a model that starts from trained "
        "weights, it is theirs, and so are mean, std, crop_pct and interpolation",
    )
    batch_size: PositiveInt = Field(64, description="images in a training step")
    eval_batch_size: PositiveInt = Field(256, description="images in an evaluation step")
    workers: int = Field(0, ge=0, description="processes that load data; 0 loads in the main process")
    classes: PositiveInt | None = Field(None, description="number of classes, for a timm dataset that does not tell")
    mean: Triple | None = Field(None, description="mean of R, G, B in files; null: ImageNet's")
    std: Spread | None = Field(None, description="spread of R, G, B in files; null: ImageNet's")
    crop_pct: Share = Field(0.875, gt=0.0, description="share of the shorter side that evaluation keeps (image files)")
    interpolation: Literal["bilinear", "bicubic"] = Field("bicubic", description="how image files are resized")
    unreadable: Literal["error", "skip"] = Field(
        "error", description="image files that cannot be read: refuse the data, naming them, or leave them out"
    )
    train_images: PositiveInt | None = Field(None, description="use only so many training images")
    hflip: Share = Field(0.0, description="probability of a horizontal flip")
    crop_scale: tuple[Share, Share] = Field(
        (1.0, 1.0), strict=False, description="share of the area that a random resized crop keeps; (1, 1) crops nothing"
    )
    shift: int = Field(0, ge=0, description="random shift by up to so many pixels (pad, then crop)")
    auto_augment: str | None = Field(None, description="timm auto-augment policy, e.g. rand-m9-mstd0.5-inc1")
    random_erasing: Share = Field(0.0, description="probability of random erasing")
    cutout: int = Field(0, ge=0, description="side in pixels of a square that is erased around a random pixel")
    mixup: float = Field(0.0, ge=0.0, description="mixup alpha; 0 is off")
    cutmix: float = Field(0.0, ge=0.0, description="cutmix alpha; 0 is off")
