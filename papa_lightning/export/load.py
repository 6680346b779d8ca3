"""Reading an exported encoder."""

from pathlib import Path

import safetensors.torch
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel

from papa_lightning.encoders import SupportedEncoder, is_noted, swap_as_saved
from papa_lightning.encoders.loading import complete_encoder, from_pretrained
from papa_lightning.encoders.projections.trimmed import trim
from papa_lightning.errors import ExportError, PapaError
from papa_lightning.export.build import build_encoder, fill_encoder
from papa_lightning.export.facts import CONFIG, WEIGHTS, Facts, facts_of, read_facts
from papa_lightning.files.checked import parse_json


def load_exported_encoder(folder: str | Path) -> PreTrainedModel:
    """Load an encoder that was exported, or saved by ``save_pretrained`` while it was swapped.

    Its outputs are those of the encoder that was written. An exported encoder cannot be restored, swapped anew or
    calibrated, because weights are gone; one of ``save_pretrained`` can. No code of the folder is run, and nothing but
    the folder is read.

    Args:
        folder: Folder of :func:`export_encoder`, ``papa export`` or ``save_pretrained``; it may have been moved.

    Returns:
        The bare encoder, on the CPU and in evaluation mode, with parameters in the dtype that they were written in.

    Raises:
        ExportError: When the folder is no such encoder, or something in it is missing, damaged or changed.

    Example:
        >>> load_exported_encoder("./no-such-folder")
        Traceback (most recent call last):
        ...
        papa_lightning.errors.ExportError: manifest of an exported encoder 'no-such-folder/papa.json' cannot be ...
    """
    path = Path(folder).expanduser()
    facts = None if is_noted(path) else read_facts(path)
    try:
        if facts is not None:
            return _load(path, facts)
        options = {"local_files_only": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        return complete_encoder(str(path), *from_pretrained(AutoModel, str(path), **options))
    except PapaError as error:
        raise ExportError(f"the exported encoder in {str(path)!r} cannot be used: {error}") from error
    except Exception as error:  # transformers and torch raise anything for a configuration that was edited
        raise ExportError(
            f"the exported encoder in {str(path)!r} cannot be used ({type(error).__name__}: {error}): write it again, "
            "with the versions of transformers and papa_lightning that it is to be used with."
        ) from error


def _load(folder: Path, facts: Facts) -> PreTrainedModel:
    state = safetensors.torch.load_file(folder / WEIGHTS)
    content = parse_json((folder / CONFIG).read_bytes())
    model_type = content.get("model_type")
    if model_type not in CONFIG_MAPPING:  # never by code that the folder names
        raise ExportError(f"{CONFIG} has model_type {model_type!r}, which transformers does not know")
    encoder = build_encoder(CONFIG_MAPPING[model_type].from_dict(content), facts.encoder, state.keys())
    if not swap_as_saved(encoder, state):
        raise ExportError(f"{WEIGHTS} holds no swapped encoder")
    found = SupportedEncoder.find(encoder)
    trim(found)
    fill_encoder(encoder, state)
    wrong = [name for name, value in facts_of(found, state).items() if value != getattr(facts, name)]
    if wrong or not all(mixer.calibrated for mixer in found.mixers):
        raise ExportError(f"{WEIGHTS} has other {wrong[0] if wrong else 'heads'} than papa.json")
    for name, held in state.items():
        if ".papa." in name and held.is_floating_point() and not bool(held.isfinite().all()):
            raise ExportError(f"{WEIGHTS} has NaN or infinite numbers in {name}")
    encoder.train(False)
    return encoder
