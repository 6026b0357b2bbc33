"""A small random model with a tokenizer of its own, as a directory that a server can be started on."""

from pathlib import Path

import reference
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig

_SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]


def write_tiny_model(folder: Path) -> Path:
    """Four layers, bytes as tokens, a chat template. Its text is nonsense, but always the same."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(_SPECIAL + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_SPECIAL)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=0,
        bos_token_id=None,
    )
    reference.random_model(config, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}<|user|>{{ message.content }}{% endfor %}<|assistant|>"
    )
    return folder
