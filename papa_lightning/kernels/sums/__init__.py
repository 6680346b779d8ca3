"""Sums of attention for calibration: blocks.py is compiled, launches.py sizes it, mixing.py calls it."""
