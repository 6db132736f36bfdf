"""Models from waveform to waveform: `LongConvForAudio`. What is inside is in `audio_bodies.py`."""

import os
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from .audio_bodies import BODIES
from .audio_configuration import LongConvAudioConfig
from .blocks import LongConvBlock
from .checkpoint import load_model
from .initialisation import KEPT_IN_FLOAT32, KeepsMarks, init_module


class LongConvForAudio(KeepsMarks, PreTrainedModel):
    """A model of an audio effect: waveform and controls in, a waveform of as many samples out."""

    config: LongConvAudioConfig
    config_class = LongConvAudioConfig
    base_model_prefix = "body"
    main_input_name = "x"
    _no_split_modules = [LongConvBlock.__name__]  # noqa: RUF012 (the type transformers declares)
    _keep_in_fp32_modules_strict = KEPT_IN_FLOAT32
    supports_gradient_checkpointing = False

    def __init__(self, config: LongConvAudioConfig) -> None:
        super().__init__(config)
        options: dict[str, Any] = dict(config.body_options or {})
        self.body: Any = BODIES[config.body](
            config.channels_in, config.channels_out, controls=config.controls, **options
        )
        self.post_init()
        self.remember_marks()

    def _initialize_weights(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        super()._initialize_weights(module)  # as in `LongConvPreTrainedModel`

    def _init_weights(self, module: nn.Module) -> None:
        init_module(module, None)

    @property
    def causal(self) -> bool:
        """Whether an output depends on no later input."""
        return self.body.causal

    @property
    def receptive_field(self) -> int | None:
        """How many consecutive inputs one output can depend on; None if unbounded."""
        return self.body.receptive_field

    @property
    def lookahead(self) -> int | None:
        """How many of these are later than the output: 0 if causal, None if unbounded."""
        return self.body.lookahead

    def forward(
        self, x: Tensor, controls: Tensor | None = None, *, state: Any = None, return_state: bool = False
    ) -> Any:
        """Process a recording, or the next samples of one. Around a recording there is silence.

        Args:
            x: (B, channels_in, T), T >= 1, in -1 ... 1.
            controls: (B, P), or (B, P, T) for each sample; None for a model without. B may be 1.
            state: from the call over the samples before; causal models only.
            return_state: also return the state to go on with; causal models only.

        Returns:
            y (B, channels_out, T), or `(y, state)`.

        Raises:
            ValueError: a shape does not fit, or a model that is not causal is asked for a state
                (`longconv.streaming.StreamingModel` streams it, late by its lookahead).
            TypeError: x is not floating point.
        """
        C = self.config.channels_in
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, got {x.dtype}")
        if x.ndim != 3 or x.shape[1] != C or x.shape[2] == 0:
            raise ValueError(f"x must be (B, channels_in, T) with channels_in = {C}, T >= 1; got {tuple(x.shape)}")
        if controls is not None:
            B, T, P = x.shape[0], x.shape[2], self.config.controls
            if tuple(controls.shape) not in ((1, P), (B, P), (1, P, T), (B, P, T)):
                wanted = f"({B}, {P}) or ({B}, {P}, {T})"
                raise ValueError(f"controls must be {wanted}; got shape {tuple(controls.shape)}")
            controls = controls.mT if controls.ndim == 3 else controls
        if state is None and not return_state:
            return self.body(x.mT, controls).mT
        if not self.causal:
            raise ValueError("state: the model is not causal; stream it with longconv.streaming.StreamingModel")
        y = self.body(x.mT, controls, state=state, return_state=return_state)
        return (y[0].mT, y[1]) if return_state else y.mT


def load_audio_model(folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> LongConvForAudio:
    """Load what `LongConvForAudio.save_pretrained` wrote; in eval mode, on the CPU.

    Raises:
        FileNotFoundError: there is no such folder, or no model in it.
        ValueError: the files are damaged, or of a model of another kind.
    """
    model = load_model(folder, dtype=dtype)
    if not isinstance(model, LongConvForAudio):
        raise ValueError(f"{folder} holds a {type(model).__name__}, and a model from waveform to waveform is wanted")
    return model


transformers.AutoConfig.register(LongConvAudioConfig.model_type, LongConvAudioConfig)
transformers.AutoModel.register(LongConvAudioConfig, LongConvForAudio)
