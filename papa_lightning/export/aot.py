"""Encoders compiled ahead of time: packages of AOTInductor, which torch loads without Python code of an encoder."""

from pathlib import Path

import torch
from torch import nn

from papa_lightning.errors import ExportError
from papa_lightning.export.graphs import export_program

#: Name of the package in the folder of an export.
PACKAGE = "model.pt2"


def export_aot(encoder: nn.Module, path: str | Path, position_ids: bool = False) -> Path:
    """Compile a swapped encoder to a package of AOTInductor, for any batch size and any length up to its constants'.

    Inputs and output are those of :func:`export_program`. ``torch._inductor.aoti_load_package`` loads the package as a
    function. It is machine code for the device of the encoder, and for the instructions of this processor.

    Args:
        encoder: A swapped and calibrated encoder, in evaluation mode; an exported one (:func:`load_exported_encoder`)
            gives the smallest package.
        path: The file, whose name ends in ".pt2".
        position_ids: Whether the package has the input position_ids too, see :func:`export_program`.

    Raises:
        ExportError: As :func:`export_program`, and where there is no C++ compiler, or it fails.
    """
    check_aot()
    return compile_program(export_program(encoder, position_ids), path)


def check_aot(asked: str = "aot is asked for") -> None:
    """Refuse to begin without a C++ compiler; the message begins with what needs it."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes a second, which other exports need not wait
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ExportError(
            f"{asked}, but there is no C++ compiler, which it needs: install g++ (apt install g++), or name "
            "another one in the environment variable CXX."
        ) from error


def compile_program(program: torch.export.ExportedProgram, path: str | Path) -> Path:
    """Compile a graph of ``torch.export`` to a package of AOTInductor."""
    from torch._inductor import aoti_compile_and_package

    if Path(path).suffix != ".pt2":
        raise ExportError(f"path is {str(path)!r}, but torch wants the name of a package to end in .pt2.")
    try:
        return Path(aoti_compile_and_package(program, package_path=str(path)))
    except Exception as error:  # torch and the compiler raise anything
        line = " ".join(str(error).split())[:400]
        raise ExportError(
            f"the encoder cannot be compiled ahead of time by this version of torch and this C++ compiler "
            f"({type(error).__name__}: {line})."
        ) from error
