"""The project's own command line: python cli.py fit --config config.yaml."""

from lightning.pytorch.cli import ArgsType, LightningCLI
from project import ReviewClassifier, ReviewDataModule


def main(args: ArgsType = None) -> LightningCLI:
    return LightningCLI(ReviewClassifier, ReviewDataModule, args=args)


if __name__ == "__main__":
    main()
