"""The two ways to hand a layer's attention to a mixer (interface.py, inline.py), and what they share."""
