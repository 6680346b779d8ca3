"""The seam: the place where observers and mixers meet the self-attention of an encoder, its masks and its slots.

An attention module either dispatches to interface.py, or is replaced by a subclass of inline.py; both end in layer.py.
"""
