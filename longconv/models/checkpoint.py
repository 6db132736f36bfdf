"""Folders with a model and its tokenizer: written whole or not at all, and read with errors that name the folder."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging


@contextmanager
def written_whole(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, and give it that name at the end if nothing was raised.

    What stood at `folder` before is replaced only then. If writing fails (a full disk, say), the partial folder is
    removed.

    Raises:
        OSError: in one line, naming the folder, for whatever went wrong with the disk.
    """
    target = Path(folder).absolute()
    partial = target.with_name(f".{target.name}.partial")
    old = target.with_name(f".{target.name}.old")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_disk_error(error):
            raise OSError(f"could not write {target}: {first_line(error)}") from error
        raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def is_disk_error(error: BaseException) -> bool:
    """Whether an exception says that writing a file failed; torch and safetensors raise types of their own for that."""
    return isinstance(error, OSError | SafetensorError) or "PytorchStreamWriter" in str(error)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def save_model(model: Any, folder: str | os.PathLike[str], tokenizer: Any = None) -> None:
    """Write a model, and a tokenizer with a `save(folder)` method, so that the folder is whole or not there.

    Raises:
        OSError: the disk is full or not writable.
    """
    with written_whole(folder) as partial:
        with quiet_transformers():
            model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save(partial)


def load_model(folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Any:
    """Load a language model, a classifier of sequences or an audio effect; in eval mode, on the CPU, of its own class.

    Models of this library, those of transformers that `replace_mixers` has changed, and any others of transformers.

    Args:
        folder: what `save_model`, `save_pretrained` or training wrote.
        dtype: of the weights, but for what stays in float32; default as they were saved.

    Raises:
        FileNotFoundError: there is no such folder, or no model in it.
        ValueError: the files are damaged, or of a model of another kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder {folder}")
    if not (folder / "config.json").is_file():
        hint = "".join(f"; did you mean {p}?" for p in sorted(folder.glob("checkpoint-*"))[-1:])
        raise FileNotFoundError(f"no model in {folder}: config.json is missing{hint}")
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder)
            names = config.architectures or ()
            kind: Any = AutoModelForCausalLM
            if any("ForSequence" in name and name.endswith("Classification") for name in names):
                kind = AutoModelForSequenceClassification
            elif any(name.endswith("ForAudio") for name in names):
                kind = AutoModel
            loaded = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ValueError(f"{folder} does not hold a whole model: {first_line(error)}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{folder} does not hold a whole model: weights are missing, {missing[0]} among them")
    return model.eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and notices of transformers for reading and writing small files."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
