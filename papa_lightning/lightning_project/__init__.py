"""Access to the parts of a Lightning project: encoder, optimizers, train data, steps, processes and folder.

Serves the calibration pass and the callbacks in projects that know nothing of papa_lightning. May import
``calibration`` and the rooms below; is imported by ``callbacks``, ``tasks`` and above.
"""
