"""What a model's output consists of: content, reasoning, tool calls. Read from text as it comes, in linear time."""
