"""GPT-2: OPT's block with other names, and matrices that are stored the other way round."""

from common.model_spec import ModelSpec
from common.topology import Stage
from worker.models.block import Block, BlockStage
from worker.models.layers import (
    Embedding,
    Head,
    Progress,
    Rows,
    load_ends,
    load_layer_norm,
    reported,
)
from worker.models.linear import Linear
from worker.models.load_linear import ACTIVATIONS, make_linear
from worker.models.stored_matrix import StoredMatrix
from worker.weights import Weights


def load_gpt2(spec: ModelSpec, stage: Stage, weights: Weights, progress: Progress) -> BlockStage:
    tokens, head = load_ends(weights, spec, stage, "transformer.wte.weight")
    return BlockStage(
        embedding=None if tokens is None else _load_embedding(weights, spec, tokens),
        head=None if head is None else Head(head, load_layer_norm(weights, "transformer.ln_f", spec)),
        blocks=[_load_block(weights, spec, layer) for layer in reported(stage.layers, progress)],
    )


def _load_embedding(weights: Weights, spec: ModelSpec, tokens: Rows) -> Embedding:
    positions = weights.get("transformer.wpe.weight", spec.context_length, spec.hidden_size)
    return Embedding(tokens, positions=positions)


def _load_block(weights: Weights, spec: ModelSpec, layer: int) -> Block:
    name = f"transformer.h.{layer}"
    hidden = spec.hidden_size
    return Block(
        attention_norm=load_layer_norm(weights, f"{name}.ln_1", spec),
        qkv=_load_conv1d(weights, f"{name}.attn.c_attn", 3 * hidden, hidden),
        out=_load_conv1d(weights, f"{name}.attn.c_proj", hidden, hidden),
        mlp_norm=load_layer_norm(weights, f"{name}.ln_2", spec),
        up=_load_conv1d(weights, f"{name}.mlp.c_fc", spec.ffn_size, hidden),
        down=_load_conv1d(weights, f"{name}.mlp.c_proj", hidden, spec.ffn_size),
        activation=ACTIVATIONS[spec.activation],
        num_heads=spec.num_heads,
        norm_first=True,
    )


def _load_conv1d(weights: Weights, name: str, out: int, ins: int) -> Linear:
    """GPT-2's checkpoints hold their matrices as [in, out]."""
    weight = weights.get(f"{name}.weight", ins, out).t().contiguous()
    return make_linear(StoredMatrix.of(weight, weights.stored), weights.get(f"{name}.bias", out))
