"""OPT, with the two ways in which its 350M member differs: norms after the residual, and a narrower embedding."""

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
from worker.models.load_linear import ACTIVATIONS, load_linear, load_stacked
from worker.weights import Weights

_PREFIX = "model.decoder"
_POSITION_OFFSET = 2  # the first two rows of the table belong to padding


def load_opt(spec: ModelSpec, stage: Stage, weights: Weights, progress: Progress) -> BlockStage:
    tokens, head = load_ends(weights, spec, stage, f"{_PREFIX}.embed_tokens.weight")
    return BlockStage(
        embedding=None if tokens is None else _load_embedding(weights, spec, tokens),
        head=None if head is None else _load_head(weights, spec, head),
        blocks=[_load_block(weights, spec, layer) for layer in reported(stage.layers, progress)],
    )


def _load_embedding(weights: Weights, spec: ModelSpec, tokens: Rows) -> Embedding:
    rows = spec.context_length + _POSITION_OFFSET
    positions = weights.get(f"{_PREFIX}.embed_positions.weight", rows, spec.hidden_size)
    project = None
    if spec.embedding_size is not None:
        project = load_linear(weights, f"{_PREFIX}.project_in", spec.hidden_size, spec.embedding_size, bias=False)
    return Embedding(tokens, project, positions, _POSITION_OFFSET)


def _load_head(weights: Weights, spec: ModelSpec, head: Linear) -> Head:
    norm = load_layer_norm(weights, f"{_PREFIX}.final_layer_norm", spec) if spec.norm_first else None
    project = None
    if spec.embedding_size is not None:
        project = load_linear(weights, f"{_PREFIX}.project_out", spec.embedding_size, spec.hidden_size, bias=False)
    return Head(head, norm, project)


def _load_block(weights: Weights, spec: ModelSpec, layer: int) -> Block:
    name = f"{_PREFIX}.layers.{layer}"
    hidden = spec.hidden_size
    parts = [f"{name}.self_attn.{part}_proj" for part in "qkv"]
    return Block(
        attention_norm=load_layer_norm(weights, f"{name}.self_attn_layer_norm", spec),
        qkv=load_stacked(weights, parts, [hidden] * 3, hidden, bias=spec.qkv_bias),
        out=load_linear(weights, f"{name}.self_attn.out_proj", hidden, hidden, bias=spec.out_bias),
        mlp_norm=load_layer_norm(weights, f"{name}.final_layer_norm", spec),
        up=load_linear(weights, f"{name}.fc1", spec.ffn_size, hidden, bias=spec.mlp_bias),
        down=load_linear(weights, f"{name}.fc2", hidden, spec.ffn_size, bias=spec.mlp_bias),
        activation=ACTIVATIONS[spec.activation],
        num_heads=spec.num_heads,
        norm_first=spec.norm_first,
    )
