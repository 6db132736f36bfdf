"""Compile Triton kernels for GPUs that are not there, and read what the compiler made of them.

`compile_all` takes many cases, in processes of its own that have no interpreter, so it works from a test run
under `TRITON_INTERPRET=1` as well. Triton keeps what it compiled on disk: a second run takes a tenth of the time.
"""

import importlib
import inspect
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .choose import Config
from .device import interpreting

KB = 1024
# Tensor-core instructions as they are spelled in PTX (Ampere, Hopper, Blackwell) and in AMD's assembly.
MATMUL = re.compile(r"^\s*(?:@\S+\s+)?(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma_)", re.MULTILINE)

_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Target:
    """A kind of GPU: Triton's names for it, and the shared memory (bytes) that one block may have there."""

    backend: str
    arch: int | str
    warp_size: int
    shared_limit: int

    def __str__(self) -> str:
        return f"sm_{self.arch}" if self.backend == "cuda" else str(self.arch)


# sm_89 has the limits of sm_86, and runs its code.
TARGETS = {
    str(target): target
    for target in (
        Target("cuda", 80, 32, 163 * KB),
        Target("cuda", 86, 32, 99 * KB),
        Target("cuda", 90, 32, 227 * KB),
        Target("cuda", 100, 32, 227 * KB),
        Target("cuda", 120, 32, 99 * KB),
        Target("hip", "gfx942", 64, 64 * KB),
    )
}


@dataclass(frozen=True)
class Case:
    """A kernel with the types and constants it is compiled for.

    Args:
        kernel: "package.module:function".
        signature: type of each argument that is no constant, as Triton writes it: "*fp32", "i64". With ":16" behind,
            its value (or address) is a multiple of 16, as it is for tensors that PyTorch allocates; with ":1" it is 1.
            A launch compiles for these two anew, unless the kernel says `do_not_specialize`. An argument that is a
            tuple has a tuple of types.
        constexprs: value of every other argument.
        num_warps: warps of a block.
        num_stages: stages of the loops that are pipelined.
        label: what the table calls it; the kernel's name if empty.
        options: further options of Triton's compiler, e.g. {"maxnreg": 128}.
    """

    kernel: str
    signature: Mapping[str, Any]
    constexprs: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CompileReport:
    """What one kernel needs on one target.

    `registers` are those of a thread (vector registers on AMD). `spill_bytes` is the local memory (scratch on AMD) of
    a thread: what did not fit into registers. `matmuls` counts tensor-core instructions in the text of the program.
    """

    label: str
    target: Target
    num_warps: int
    num_stages: int
    shared_bytes: int
    registers: int
    spill_bytes: int
    matmuls: int

    @property
    def fits(self) -> bool:
        """Whether a block's shared memory is within the limit of the target."""
        return self.shared_bytes <= self.target.shared_limit


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, Any],
    constexprs: Mapping[str, Any],
    target: Target,
    num_warps: int = 4,
    num_stages: int = 2,
    label: str = "",
    options: Mapping[str, Any] | None = None,
) -> CompileReport:
    """Compile a function made by `triton.jit` in this process; arguments as in `Case`.

    Raises:
        RuntimeError: under `TRITON_INTERPRET=1`, where there is nothing to compile; `compile_all` works there.
        ValueError: naming arguments of the kernel that have neither type nor value, or both.
    """
    if interpreting():
        raise RuntimeError("under TRITON_INTERPRET=1 kernels are not compiled: use compile_all, or unset the variable")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(kernel.arg_names)
    wrong = sorted(set(names) ^ (set(signature) | set(constexprs))) or sorted(set(signature) & set(constexprs))
    if wrong:
        raise ValueError(f"every argument of {kernel.__name__} needs a type or a value, not both; see {wrong}")
    constants: dict[Any, Any] = dict(constexprs)
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}

    def specialise(type: Any, path: tuple[int, ...]) -> Any:
        if isinstance(type, tuple):
            return tuple(specialise(inner, (*path, i)) for i, inner in enumerate(type))
        type, _, known = type.partition(":")
        if known and not kernel.params[path[0]].do_not_specialize:
            if known == "1":
                constants[path] = 1
                return "constexpr"
            attributes[path] = [["tt.divisibility", int(known)]]
        return type

    types = {name: specialise(signature.get(name, "constexpr"), (i,)) for i, name in enumerate(names)}
    source = ASTSource(kernel, types, constants, attributes)
    gpu = GPUTarget(target.backend, target.arch, target.warp_size)
    compiler_options = {"num_warps": num_warps, "num_stages": num_stages, **(options or {})}
    compiled = triton.compile(source, target=gpu, options=compiler_options)
    if target.backend == "cuda":
        registers, spills = _cuda_resources(compiled.asm["cubin"])
        text = compiled.asm["ptx"]
    else:
        text = compiled.asm["amdgcn"]
        registers = _number(r"\.vgpr_count:\s*(\d+)", text)
        spills = _number(r"\.private_segment_fixed_size:\s*(\d+)", text)
    return CompileReport(
        label=label or kernel.__name__,
        target=target,
        num_warps=num_warps,
        num_stages=num_stages,
        shared_bytes=compiled.metadata.shared,
        registers=registers,
        spill_bytes=spills,
        matmuls=len(MATMUL.findall(text)),
    )


def case_of(kernel: Any, arguments: Mapping[str, Any], config: Config, label: str = "") -> Case:
    """Return what the launch of a kernel with these arguments compiles.

    Args:
        kernel: a function made by `triton.jit`, at the top level of a module that can be imported.
        arguments: by name: tensors, numbers, tuples of these, and None, the values of a launch.
        config: constants, warps and stages.
        label: see `Case`.
    """
    signature, constexprs, constants = {}, dict(config.constants), _constants(kernel)
    for name, value in arguments.items():
        if value is None or name in constants:
            constexprs[name] = value
        else:
            signature[name] = _type_of(value)
    function = kernel.fn
    place = f"{function.__module__}:{function.__name__}"
    return Case(place, signature, constexprs, config.num_warps, config.num_stages, label or function.__name__)


def compile_all(
    cases: Sequence[Case], targets: Iterable[Target] | None = None, workers: int | None = None
) -> list[CompileReport]:
    """Compile every case for every target (default: `TARGETS`), in `workers` processes (default: cores, at most 8).

    Returns:
        Reports in the order of cases, and for each case in the order of targets.

    Raises:
        RuntimeError: with the compiler's words, if a case does not compile.
    """
    jobs = [(case, target) for case in cases for target in targets or TARGETS.values()]
    workers = max(1, min(workers or min(os.cpu_count() or 1, 8), len(jobs)))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", "import sys; from longconv.kernels.gpu import aot; aot._work(sys.argv[1])"]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i}.pickle") for i in range(workers)]
        for i, path in enumerate(paths):
            path.write_bytes(pickle.dumps(jobs[i::workers]))
        running = [subprocess.Popen([*command, str(p)], env=environment, stderr=subprocess.PIPE) for p in paths]
        errors = [process.communicate()[1].decode() for process in running]  # each waits, and all of them run
        for process, error in zip(running, errors, strict=True):
            if process.returncode:
                raise RuntimeError(f"compilation failed:\n{error}")
        reports: list[Any] = [None] * len(jobs)
        for i, path in enumerate(paths):
            reports[i::workers] = pickle.loads(path.with_suffix(".done").read_bytes())
    return reports


def table(reports: Sequence[CompileReport]) -> str:
    """Return reports as aligned text, one line each; what is over a limit is marked with "!"."""
    head = ("kernel", "target", "warps", "stages", "shared KB", "of", "registers", "spills", "matmuls")
    rows = [
        (
            r.label,
            str(r.target),
            str(r.num_warps),
            str(r.num_stages),
            f"{r.shared_bytes / KB:.1f}" + ("" if r.fits else "!"),
            str(r.target.shared_limit // KB),
            str(r.registers),
            str(r.spill_bytes) + ("!" if r.spill_bytes else ""),
            str(r.matmuls),
        )
        for r in reports
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    return "\n".join(lines)


def _work(path: str) -> None:
    """Compile the jobs that a file holds; the process that `compile_all` starts."""
    reports = []
    for case, target in pickle.loads(Path(path).read_bytes()):
        module, _, name = case.kernel.partition(":")
        kernel = getattr(importlib.import_module(module), name)
        arguments = (case.signature, case.constexprs, target, case.num_warps, case.num_stages, case.label, case.options)
        try:
            reports.append(compile_kernel(kernel, *arguments))
        except Exception as error:
            raise RuntimeError(f"{case.label or case.kernel} for {target}: {case}") from error
    Path(path).with_suffix(".done").write_bytes(pickle.dumps(reports))


def _cuda_resources(cubin: bytes) -> tuple[int, int]:
    """Return registers and bytes of local memory of a thread, from the cuobjdump that Triton brings along."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _number(r"REG:(\d+)", text), _number(r"STACK:(\d+)", text) + _number(r"LOCAL:(\d+)", text)


def _type_of(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_type_of, value))
    if isinstance(value, Tensor):
        return "*" + _TYPES[value.dtype] + (":16" if value.data_ptr() % 16 == 0 else "")
    if isinstance(value, float):
        return "fp32"
    known = ":1" if value == 1 else ":16" if value % 16 == 0 else ""
    return ("i32" if -(2**31) <= value < 2**31 else "i64") + known


def _constants(kernel: Any) -> set[str]:
    """Names of the arguments that are constants of the program."""
    parameters = inspect.signature(kernel.fn).parameters.values()
    return {p.name for p in parameters if "constexpr" in str(p.annotation)}


def _number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    if not found:
        raise RuntimeError(f"the compiler's output has no {pattern}: {text[-500:]}")
    return max(map(int, found))
