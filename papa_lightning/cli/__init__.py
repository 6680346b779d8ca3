"""The command line: ``papa VERB``.

``main`` finds configurations and runs a verb: one of the Trainer (``trainer``, ``trainer_verbs``), or one of the
registry (``verbs``, where a new one is added). ``demo_package`` has the encoder of the demo. Every error ends in
``errors``. May import all other rooms, but none imports it.
"""
