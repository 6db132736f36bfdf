"""The contestants of `longconv bench stream`: one model of an audio effect, run over a stream in different ways.

All but the LSTM have the weights of one micro-TCN. Their controls stand still.
"""

import copy
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from longconv.layers import MicroTCN
from longconv.models import LongConvAudioConfig, LongConvForAudio
from longconv.streaming import StreamingModel
from longconv.streaming.step import StreamingStep

#: Ours, which the rows' ratios refer to.
OURS = "longconv"


class Contestant(ABC):
    """A way to run a body over a stream, with controls (P,) that stand still.

    Attributes:
        name: as it appears in the table, the CSV file and the plot.
        parameters: of the model.
    """

    def __init__(self, name: str, body: nn.Module, controls: Tensor) -> None:
        self.name, self.body, self.controls = name, body, controls[None]
        self.parameters = sum(p.numel() for p in body.parameters())

    @torch.no_grad()
    def definition(self, x: Tensor) -> Tensor:
        """What a whole recording x (1, 1, n) gives, in float64."""
        return copy.deepcopy(self.body).double()(x.double().mT, self.controls.double()).mT

    @abstractmethod
    def process(self, x: Tensor) -> Tensor:
        """Process the next block (1, 1, n) of a stream to (1, 1, n)."""

    @abstractmethod
    def reset(self) -> None:
        """Begin another stream."""


class Stream(Contestant):
    """`StreamingModel`: ours, and the LSTM."""

    def __init__(self, name: str, model: LongConvForAudio, controls: Tensor) -> None:
        super().__init__(name, model.body, controls)
        self.stream = StreamingModel(model, controls=controls)

    def reset(self) -> None:
        """See `Contestant`."""
        self.stream.reset()

    def process(self, x: Tensor) -> Tensor:
        """See `Contestant`."""
        return self.stream.process(x[0])[None]


class WithState(Contestant):
    """The model's own `forward` with a state handed on, as it is trained: nothing fused or preallocated."""

    def __init__(self, body: MicroTCN, controls: Tensor) -> None:
        super().__init__("longconv, with a state", body, controls)
        self.reset()

    def reset(self) -> None:
        """See `Contestant`."""
        self.state: Any = None

    @torch.inference_mode()
    def process(self, x: Tensor) -> Tensor:
        """See `Contestant`."""
        y, self.state = self.body(x.mT, self.controls, state=self.state, return_state=True)
        return y.mT


class Offline(Contestant):
    """The model's `forward` over each block as a recording of its own: what a whole file of that length costs.

    Blocks are not continued, so only the first one of a stream is what the definition gives.
    """

    def __init__(self, body: MicroTCN, controls: Tensor) -> None:
        super().__init__("longconv, offline", body, controls)

    def reset(self) -> None:
        """See `Contestant`: there is nothing to forget."""

    @torch.inference_mode()
    def process(self, x: Tensor) -> Tensor:
        """See `Contestant`."""
        return self.body(x.mT, self.controls).mT


class TorchTCN(nn.Module):
    """The micro-TCN of PyTorch's modules, as its authors put them together, around convolutions of one's choice.

    Their causal crop delays each residual by one sample; here it is aligned, so that all contestants do the same.
    """

    def __init__(self, model: MicroTCN, convolution: Callable[..., nn.Module]) -> None:
        super().__init__()
        stack: Any = model.stack
        self.condition, self.layers = stack.condition, nn.ModuleList()
        for block in stack.blocks:
            O, I, K = block.conv.weight.shape
            conv: Any = convolution(I, O, K, dilation=block.conv.dilation, bias=False)
            norm, prelu = nn.BatchNorm1d(O, affine=False), nn.PReLU(O)
            residual = nn.Conv1d(I, O, 1, groups=I, bias=False)
            with torch.no_grad():
                conv.weight.copy_(block.conv.weight)
                prelu.weight.copy_(block.slope)
                residual.weight.copy_(block.residual[:, None, None])
            norm.load_state_dict(block.norm.state_dict())
            parts = {"conv": conv, "norm": norm, "adaptor": block.adaptor, "prelu": prelu, "residual": residual}
            self.layers.append(nn.ModuleDict(parts))
        self.output = nn.Conv1d(stack.blocks[-1].conv.weight.shape[0], model.out_channels, 1)
        with torch.no_grad():
            self.output.weight.copy_(model.output.weight[..., None])
            self.output.bias.copy_(model.output.bias)  # type: ignore[union-attr]
        self.eval()

    def forward(self, x: Tensor, controls: Tensor, **options: Any) -> Tensor:
        """Map x (1, 1, n), controls (1, P); without padding in the convolutions n gets less."""
        condition = self.condition(controls)
        for layer in self.layers:
            parts: Any = layer
            y = parts["norm"](parts["conv"](x, **options))
            g, b = parts["adaptor"](condition)[..., None].chunk(2, dim=1)
            y = parts["prelu"](y * g + b)
            x = y + parts["residual"](x)[..., x.shape[2] - y.shape[2] :]
        return torch.tanh(self.output(x))


class Recomputing(Contestant):
    """The published way: every call computes anew the outputs that the receptive field in front of the block has."""

    def __init__(self, body: MicroTCN, controls: Tensor) -> None:
        super().__init__("recomputing, PyTorch", body, controls)
        self.model, self.context = TorchTCN(body, nn.Conv1d), body.receptive_field - 1
        self.reset()

    def reset(self) -> None:
        """See `Contestant`."""
        self.past = torch.zeros(1, 1, self.context)

    @torch.inference_mode()
    def process(self, x: Tensor) -> Tensor:
        """See `Contestant`."""
        whole = torch.cat([self.past, x], dim=2)
        self.past = whole[..., whole.shape[2] - self.context :]
        return self.model(whole, self.controls)


class Package(Contestant):
    """The pytorch-tcn package: its `TemporalConv1d` in streaming mode, all else of PyTorch's."""

    def __init__(self, body: MicroTCN, controls: Tensor) -> None:
        try:
            from pytorch_tcn import TemporalConv1d
        except ImportError as error:
            raise ImportError("this benchmark needs pytorch-tcn: pip install 'longconv[bench]'") from error
        super().__init__(f"pytorch-tcn {importlib.metadata.version('pytorch-tcn')}", body, controls)
        self.model, step = TorchTCN(body, TemporalConv1d), StreamingStep(body)
        self.silence = step.initial_state(self.controls).detach().split([C * W for C, W in step.shapes], dim=1)
        self.reset()

    def reset(self) -> None:
        """What silence has left in the buffers; the package's own reset puts zeros, after which outputs differ."""
        layers: Any = self.model.layers
        for layer, past in zip(layers, self.silence, strict=False):
            layer["conv"].padder.buffer = past.unflatten(1, (-1, layer["conv"].padder.pad_len)).clone()

    @torch.inference_mode()
    def process(self, x: Tensor) -> Tensor:
        """See `Contestant`."""
        return self.model(x, self.controls, inference=True)


def contestants(name: str) -> list[Contestant]:
    """Every contestant for a published causal micro-TCN, ours first; weights and statistics are random, but lively."""
    torch.manual_seed(0)
    model = LongConvForAudio(LongConvAudioConfig.published(name)).eval().requires_grad_(False)
    for block in model.body.stack.blocks:
        block.norm.running_mean.uniform_(-0.1, 0.1)
        block.norm.running_var.uniform_(0.1, 0.5)
    lstm = LongConvForAudio(LongConvAudioConfig.published("LSTM-32")).eval().requires_grad_(False)
    controls, body = torch.tensor([0.0, 0.65]), model.body
    return [
        Stream(OURS, model, controls),
        Offline(body, controls),
        WithState(body, controls),
        Package(body, controls),
        Recomputing(body, controls),
        Stream("LSTM-32", lstm, controls),
    ]
