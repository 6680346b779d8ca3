"""The command line: ``papa VERB``."""
