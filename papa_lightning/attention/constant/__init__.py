"""Kinds whose heads use calibrated matrices: constant, gated, shared, folded.

May import the other files of the room. A new kind is one file with a subclass of MatrixHeads.
"""
