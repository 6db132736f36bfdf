"""A trained model for longer sequences than it was trained for, where its mixers can take them."""

from typing import Any

import torch

from longconv.models import LongConvConfig

_PROBE = 256


@torch.no_grad()
def lengthened(model: Any, length: int) -> Any:
    """`model` itself if it takes sequences of `length`, or else a model with its weights that does, in eval mode.

    What bounds a mixer may be a mere number (attention, recurrences, stacks of dilated convolutions), or part of what
    was learned: the taps of a free filter, the positions of an implicit one. Those cannot be continued.

    Raises:
        ValueError: a mixer cannot take `length`; the message says which one.
    """
    config = model.config
    if not isinstance(config, LongConvConfig):
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise ValueError(f"this model of the kind {config.model_type!r} takes at most {limit} tokens, not {length}")
        return model
    limit = config.max_position_embeddings
    if length <= limit and _shortest(model) >= length:
        return model
    hint = f"train with --max-length {length}, or evaluate at no more than {min(limit, _shortest(model))}"
    longer_config = LongConvConfig.from_dict({**config.to_dict(), "max_position_embeddings": max(length, limit)})
    longer = type(model)(longer_config).to(device=model.device, dtype=model.dtype).eval()
    for index, (before, after) in enumerate(zip(model.base_model.layers, longer.base_model.layers, strict=True)):
        name, options = longer_config.mixer_of(index)
        if after.mixer.max_length is not None and after.mixer.max_length < length:
            raise ValueError(
                f"layer {index} ({name}) takes at most {options['max_length']} tokens, as its options say: {hint}"
            )
        if changed := _changed(before, after):
            raise ValueError(
                f"layer {index} ({name}) cannot take {length} tokens: its {changed} was learned for at most "
                f"{before.mixer.max_length}; {hint}"
            )
    longer.load_state_dict(model.state_dict())
    _restore_dtypes(model, longer)
    # The weights fit; that they mean the same is seen on sequences that both can take.
    ids = torch.arange(min(limit, _PROBE), device=model.device)[None] % config.vocab_size
    expected, found = (m(input_ids=ids).logits.float() for m in (model.eval(), longer))
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ValueError(f"the mixers ({config.mixers}) depend on the longest length and cannot take {length}: {hint}")
    return longer


def _shortest(model: Any) -> int:
    """The longest sequence that all mixers take."""
    limits = [block.mixer.max_length for block in model.base_model.layers if block.mixer.max_length is not None]
    return min([model.config.max_position_embeddings, *limits])


def _changed(before: torch.nn.Module, after: torch.nn.Module) -> str | None:
    """The first parameter or buffer that is of another shape, or there in only one of two blocks."""
    shapes, others = ({name: x.shape for name, x in block.state_dict().items()} for block in (before, after))
    names = [*shapes, *(name for name in others if name not in shapes)]
    return next((name for name in names if shapes.get(name) != others.get(name)), None)


def _restore_dtypes(model: torch.nn.Module, longer: torch.nn.Module) -> None:
    """The dtype of each parameter as it was: filters stay wide in a model of half precision."""
    for mine, theirs in zip(longer.parameters(), model.parameters(), strict=True):
        mine.data = theirs.data.clone()
