"""Attention-free mixing (AFT): functions, layers, position biases, and the kinds that start with ``aft_``.

May import the other files of the room. A new form is a function, a layer, and a kind in mixers.py.
"""
