"""How much an error in each filter changes what a language model predicts."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .compare import IGNORE, labels_of, logits_of
from .model import named_mixers


def sensitivity(model: Any, batches: Iterable[Mapping[str, Tensor]], *, seed: int = 0) -> list[Tensor]:
    """Weights for the squared L2 errors of filters, such that their sum is about the divergence they cause.

    Tokens y drawn from the model's own predictions p have E (e . d log p(y) / dk)^2 = 2 KL to second order, for an
    error e of the taps k: the mean of the gradient's square is the Fisher information. Its diagonal is averaged over
    the taps of a filter,

        w = ||d log p(y) / dk||^2 / (2 x tokens x taps),     KL per token ~ sum over filters of w ||k - k_hat||^2,

    summed over the rows of the text, each with one draw of tokens. So errors count as random signs on all taps alike;
    where they are not (a fit that misses one frequency, say) the sum can be several times too small.

    It is the relation between filters that matters here. Measured on two small models trained on text (Hyena with
    smooth filters; Hyena, MultiHyena and SGConv with rough ones), at budgets of 2 to 35 % of the states of order 64, on
    other text: orders chosen by it leave 0.38 to 0.73 of the divergence that unweighted errors lead to, 0.40 to 0.83
    of that of weights E u^2 by the filter's input, 0.33 to 0.75 of that of one weight for each bank from the measured
    divergence of a rough fit of it alone, and 0.88 to 1.33 of that of the whole quadratic form in each filter's error.

    Args:
        model: a causal language model of `longconv.models`, on the device of the batches; left as it is.
        batches: as for `compare`. Taps beyond the longest row have no gradient, and are not averaged over.
        seed: of the draws.

    Returns:
        For each bank of long filters, in the order of layers and stages, its (D,) weights, float64 on the CPU.

    Raises:
        ValueError: the batches predict no token.
    """
    filters = [filter for _, mixer in named_mixers(model).values() for filter in mixer.long_filters]
    called: dict[Any, Tensor] = {}

    def leaf(filter: Any, _: Any, taps: Tensor) -> Tensor:
        called[filter] = taps.detach().requires_grad_()
        return called[filter]

    squares: list[Any] = [0.0] * len(filters)
    longest, tokens, training = [1] * len(filters), 0, model.training
    generator = torch.Generator().manual_seed(seed)
    hooks = [filter.register_forward_hook(leaf) for filter in filters]
    try:
        model.eval()
        for batch in batches:
            for index in range(len(batch["input_ids"])):
                row = {name: tensor[index : index + 1] for name, tensor in batch.items()}
                predicted = labels_of(row)[0, 1:] != IGNORE
                if not bool(predicted.any()):
                    continue
                with torch.enable_grad():
                    log_p = logits_of(model, row)[0, :-1][predicted].float().log_softmax(-1)
                    drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
                    total = log_p.gather(1, drawn.to(log_p.device)).sum()
                    gradients = torch.autograd.grad(total, [called[filter] for filter in filters])
                tokens += len(drawn)
                for bank, gradient in enumerate(gradients):
                    squares[bank] = squares[bank] + gradient.double().square().sum(-1).cpu()
                    longest[bank] = max(longest[bank], gradient.shape[-1])
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    if not tokens:
        raise ValueError("batches: no token is predicted in them")
    return [square / (2 * tokens * taps) for square, taps in zip(squares, longest, strict=True)]
