"""From files to a stage that computes: picks the reader of the file format and the definition of the family."""

from collections.abc import Callable

import torch

from common.config import Stored
from common.gguf_file import read_gguf
from common.model_files import ModelFiles
from common.model_spec import Family, ModelSpec
from common.topology import Stage
from worker.gguf_weights import GgufWeights
from worker.models.gpt2 import load_gpt2
from worker.models.layers import Progress
from worker.models.llama import load_llama
from worker.models.opt import load_opt
from worker.models.stage_model import StageModel
from worker.safetensors_weights import SafetensorsWeights
from worker.weights import Weights

_FAMILIES: dict[Family, Callable[[ModelSpec, Stage, Weights, Progress], StageModel]] = {
    "llama": load_llama,
    "opt": load_opt,
    "gpt2": load_gpt2,
}


def load_stage(
    files: ModelFiles,
    spec: ModelSpec,
    stage: Stage,
    *,
    device: torch.device,
    dtype: torch.dtype,
    stored: Stored = "exact",
    progress: Progress,
) -> StageModel:
    """Read the weights of `stage`, and no others, onto `device`.

    `progress` is called with the number of layers loaded and of layers in the stage. Raises ModelError naming the
    tensor that is missing or does not fit.
    """
    return _FAMILIES[spec.family](spec, stage, _open_weights(files, spec, device, dtype, stored), progress)


def _open_weights(
    files: ModelFiles, spec: ModelSpec, device: torch.device, dtype: torch.dtype, stored: Stored
) -> Weights:
    if files.format == "gguf":
        return GgufWeights(read_gguf(files.path), spec, device, dtype, stored)
    return SafetensorsWeights(files.path, device, dtype, stored)
