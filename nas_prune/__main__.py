"""``python -m nas_prune`` and ``nas-prune``: the program, of which Ctrl-C may interrupt the imports already."""

from nas_prune.base.interrupts import Interruptible


def main() -> None:
    """Run the program and exit."""
    with Interruptible():
        from nas_prune.cli.program import main as program

        program()


if __name__ == "__main__":
    main()
