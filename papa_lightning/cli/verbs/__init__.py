"""The verbs of ``papa`` that need no Trainer, one file each.

A verb is a function that is registered in :data:`~papa_lightning.cli.verbs.registry.VERBS`: its signature gives the
arguments, its docstring the help. To add one, add a file to this folder; the command line, its help and the tables of
the documentation find it. Verbs of other packages are entry points of the group ``papa_lightning.verbs``.

The files here are imported for every help text. Whatever a verb works with is imported inside its function, or below
``TYPE_CHECKING``, where jsonargparse finds the types of the arguments.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
