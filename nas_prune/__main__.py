"""``python -m nas_prune`` and ``nas-prune``: the program, of which Ctrl-C may interrupt the imports already."""

from nas_prune.train.stop_signals import interruptible


def main() -> None:
    """Run the program and exit."""
    with interruptible():
        from nas_prune.cli.program import main as program

        program()


if __name__ == "__main__":
    main()
