"""``python -m papa_lightning`` is ``papa``."""

from papa_lightning.cli.main import main

if __name__ == "__main__":
    main()
