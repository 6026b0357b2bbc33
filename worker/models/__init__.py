"""Stage-partitioned model definitions: the Llama family, OPT and GPT-2."""
