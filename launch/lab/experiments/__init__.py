"""The experiments of `skipjoin reproduce`: the paper's, and those that show where its policy does not help."""
