"""What a person types: serve, profile and the benchmarks. The only package that may import all others."""
