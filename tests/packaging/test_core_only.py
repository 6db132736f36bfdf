"""With torch, einops and numpy alone, operators, filters and layers work, and models say what is missing."""

import subprocess
import sys
import textwrap

# What follows sees nothing but the standard library and the core dependencies with theirs: the path finder is put
# behind one that finds nothing else, which is just how an absent package looks.
BLOCKER = """
import importlib.machinery
import importlib.metadata
import re
import sys


def with_requirements(names):
    found, queue = {}, list(names)
    while queue:
        name = queue.pop()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # a requirement of other platforms
            continue
        for requirement in found[name].requires or ():
            if "extra ==" not in requirement:
                queue.append(re.match(r"[\\w.-]+", requirement).group())
    return found


CORE = with_requirements(["torch", "einops", "numpy"])
CORE.pop("triton", None)
ALLOWED = {str(file).split("/")[0].partition(".")[0] for d in CORE.values() for file in d.files}
ALLOWED |= sys.stdlib_module_names | {"longconv"}
BLOCKED = {"transformers", "datasets", "scipy", "matplotlib", "tyro", "rich", "sentencepiece", "triton", "accelerate"}
BLOCKED |= {"safetensors", "tokenizers", "julius", "tqdm", "pyarrow", "pandas"}
BLOCKED |= {"onnx", "onnxscript", "onnxruntime"}
assert not ALLOWED & BLOCKED, ALLOWED & BLOCKED


class CoreOnly:
    @staticmethod
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and not top.startswith("_sysconfigdata"):
            return None
        return importlib.machinery.PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = CoreOnly
for name in BLOCKED:  # what is blocked is blocked, whether or not it is installed
    assert name not in sys.modules, name
    assert importlib.util.find_spec(name) is None, name
"""


def run(code: str) -> str:
    """Run code behind the blocker in a process of its own; returns what it printed."""
    program = "import importlib.util\n" + BLOCKER + textwrap.dedent(code)
    process = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_operators_and_layers_need_the_core_alone():
    run(
        """
        import pkgutil

        import torch

        import longconv
        import longconv.filters
        import longconv.functional
        import longconv.kernels
        import longconv.layers
        import longconv.state

        for package in (longconv.kernels, longconv.filters, longconv.layers):
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                if not module.name.rpartition(".")[2].startswith("triton_"):
                    importlib.import_module(module.name)

        u = torch.randn(2, 3, 50, requires_grad=True)
        k = torch.randn(3, 50, requires_grad=True)
        y = longconv.functional.fft_conv(u, k)
        y.square().sum().backward()
        expected = longconv.functional.fft_conv(u, k, impl="reference")
        assert (y - expected).norm() <= 1e-5 * expected.norm()
        assert u.grad.isfinite().all() and k.grad.isfinite().all() and k.grad.any()

        layer = longconv.layers.Hyena(8, max_length=64)
        x = torch.randn(2, 50, 8, requires_grad=True)
        z = layer(x)
        assert z.shape == x.shape
        z.square().sum().backward()
        assert x.grad.isfinite().all() and x.grad.any()
        """
    )


def test_models_name_the_missing_extra():
    printed = run(
        """
        try:
            import longconv.models
        except ImportError as error:
            print(error)
        else:
            raise SystemExit("longconv.models was imported without transformers")
        """
    )
    assert "longconv[train]" in printed


def test_export_names_the_missing_extra():
    printed = run(
        """
        import torch

        import longconv.export

        layer = longconv.layers.Hyena(8, max_length=64).eval()
        try:
            longconv.export.to_onnx(layer, torch.randn(2, 50, 8))
        except ImportError as error:
            print(error)
        else:
            raise SystemExit("longconv.export.to_onnx ran without onnx")
        """
    )
    assert "longconv[onnx]" in printed
