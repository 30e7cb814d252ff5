"""A table on a terminal: numbers on the right and never broken, everything else folded where the window ends."""

from rich import box
from rich.table import Table
from rich.text import Text

WHOLE = ("kind", "sizes", "role", "model", "method")  # columns of a few short words, which are not broken either


def terminal_table(*columns: str, title: str | Text | None = None, caption: str | Text | None = None) -> Table:
    """A table without rows; columns marked by # hold numbers."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.box, table.pad_edge = box.SIMPLE, False
    for column in columns:
        number = column.startswith("#")
        fixed = number or column in WHOLE
        table.add_column(column.lstrip("#"), justify="right" if number else "left", no_wrap=fixed, overflow="fold")
    return table


def texts(*values: object) -> list[Text]:
    """Cells as they stand, not as markup."""
    return [Text(str(value)) for value in values]
