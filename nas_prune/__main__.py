"""``python -m nas_prune`` equals ``nas-prune``."""

from nas_prune.cli import main

if __name__ == "__main__":
    main()
