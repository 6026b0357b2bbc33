"""The HTTP surface: one file per endpoint family, one for errors, one for the schema, one for SSE."""
