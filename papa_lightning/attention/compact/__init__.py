"""Kind "compact": constant heads in a few numbers each.

May import the other files of the room. A new form of head is an entry of FORMS in layer.py, with its product.
"""
