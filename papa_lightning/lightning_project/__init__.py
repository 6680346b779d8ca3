"""Access to the parts of a Lightning project: encoder, optimizers, train data, steps, processes and folder.

May import ``calibration`` and the rooms below; is imported by ``callbacks``, ``tasks`` and above.
"""
