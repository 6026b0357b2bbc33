"""Reference models: transformers' own, to compare ours with. Slow to make, so made once."""

from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from common.model_files import locate

SMOLLM2 = LlamaConfig(
    num_hidden_layers=30,
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    vocab_size=49152,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
)


@cache
def reference_model() -> LlamaForCausalLM:
    """The embedded model in fp32, its GGUF read, unpacked and reordered by transformers: nothing of ours is in it."""
    with torch.device("meta"):
        model = LlamaForCausalLM(SMOLLM2)
    path = str(locate(None).path)
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    model = LlamaForCausalLM(SMOLLM2)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert missing == ["lm_head.weight"], missing  # tied
    assert not unexpected
    return model.eval()


@torch.inference_mode()
def logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """fp32 [tokens, vocab]."""
    return model(torch.tensor([ids])).logits[0].float()


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt_ids: list[int], n: int) -> list[int]:
    """The `n` most likely tokens one by one; the end-of-text token does not stop it."""
    tokens: list[int] = []
    ids, past = torch.tensor([prompt_ids]), None
    for _ in range(n):
        output = model(ids, past_key_values=past, use_cache=True)
        past = output.past_key_values
        ids = output.logits[:, -1].argmax(-1, keepdim=True)
        tokens.append(int(ids))
    return tokens


def random_model(config: PreTrainedConfig, directory: Path, **save: str) -> PreTrainedModel:
    """A model of `config` with no weight at its default, saved into `directory`: norms and biases matter, too."""
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name or ".ln_" in name else 0.15 * noise)
    model.save_pretrained(directory, **save)
    return model
