"""Compiles the Triton kernels for GPUs that are not here, in a process of its own: the tests' interprets them."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from worker.attention import triton_kernels as kernels

ARCHITECTURES = {80: 163 * 1024, 90: 227 * 1024}  # A100, H100: bytes of shared memory that a program may have
POINTERS = {"slots", "counts", "blocks", "pieces", "jobs"}
HEAD = {"HEAD_DIM": 128, "HEAD_PAD": 128}
BLOCK = {**HEAD, "KV_HEADS": 8, "BLOCK_TOKENS": 16}
ATTEND = {**BLOCK, "GROUP": 4, "SLOTS": 64}
KERNELS = [  # as Llama 3 8B in bf16 uses them
    (kernels.store, {**BLOCK, "HEADS_PAD": 8}, set()),
    (kernels.attend, {**ATTEND, "COUNT": 2, "ROWS": 16, "SPLIT": 256}, {"out", "weights"}),
    (kernels.attend, {**ATTEND, "COUNT": 3, "ROWS": 64, "SPLIT": 0}, {"weights"}),
    (kernels.merge, {**HEAD, "HEADS": 32}, {"parts", "weights"}),
]


def type_of(name: str, fp32: set[str]) -> str:
    if name == "scale":
        return "fp32"
    if name == "window" or name.endswith("_stride"):
        return "i32"
    return "*i64" if name in POINTERS else "*fp32" if name in fp32 else "*bf16"


for architecture, most_shared in ARCHITECTURES.items():
    for kernel, constants, fp32 in KERNELS:
        types = {p.name: "constexpr" if p.is_constexpr else type_of(p.name, fp32) for p in kernel.params}
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, (name, kind) in enumerate(types.items())
            if kind.startswith("*") or name.endswith("_stride")
        }
        source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
        assert compiled.metadata.shared <= most_shared, f"{kernel.__name__} needs {compiled.metadata.shared} bytes"
        print(kernel.__name__)
