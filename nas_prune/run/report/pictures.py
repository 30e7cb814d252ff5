"""The pictures that a selector looked at: a file per axis in the run folder, and their section of the page."""

from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from nas_prune.base.errors import ArtifactError
from nas_prune.base.files.whole import atomic_write, read_bytes

SECTION = """<section id="pictures">
<h2>What the units look for</h2>
<p>The picture that excites each unit most, found by gradient ascent; at most 96 of an axis. Neighbours in frames of one
grey do the same job: their pictures are alike. Faded: removed.</p>
{% for name, image in pictures.items() %}
<details class="card"{% if loop.first %} open{% endif %}><summary>{{ name }}</summary>
<p><img src="data:image/png;base64,{{ image }}" alt="pictures of the units of {{ name }}" style="max-width: 100%"></p>
</details>
{% endfor %}
</section>
"""


def write_pictures(folder: Path, pictures: Mapping[str, Tensor]) -> None:
    """Write images (3 h w) of bytes, by axis, as PNG."""
    for name, image in pictures.items():
        content = BytesIO()
        Image.fromarray(image.movedim(0, -1).contiguous().numpy()).save(content, "PNG")
        atomic_write(folder / f"{name}.png", content.getvalue())


def pictures_section(folder: Path) -> Markup:
    """The section of the page; nothing, where there are no pictures."""
    found = sorted(folder.glob("*.png"))
    images = {path.stem: b64encode(read_bytes(path, ArtifactError)).decode() for path in found}
    page = Environment(autoescape=True, trim_blocks=True).from_string(SECTION)
    return Markup(page.render(pictures=images)) if images else Markup("")
