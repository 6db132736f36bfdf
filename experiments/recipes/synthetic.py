"""Synthetic tasks at L = 256, for a CPU: recipes `synthetic.TASK.MIXER`; `configuration` has them at any length.

All are ours. What they follow:

- Poli et al. 2023 ("Hyena Hierarchy", appendix A.1) on recall: vocabularies of 10 to 40, two layers of width 64, AdamW
  with betas (0.9, 0.98), weight decay 0.1, batches of 32, a cosine after a warm-up of 5%, 200 passes over 2,000
  sequences at a learning rate of 5e-4, which is 12,500 updates. HazyResearch/safari
  configs/experiment/synthetics/associative_recall/*.yaml: an MLP of 4 D, one head of attention, Hyena's filters with
  emb_dim 5, filter_order 64, w 10.
- Arora et al. 2023 ("Zoology"): HazyResearch/zoology zoology/experiments/iclr24_zoology_figure2/configs.py: L/16 pairs,
  fillers that are no keys, the best of widths 64 to 512 and learning rates 1e-4, 4.6e-4, 2.2e-3 and 1e-2, 64 passes
  over 100,000 sequences. Its vocabulary is 8,192; here it is 64, since the way to the answers is the longer the more
  keys there are: with 256 attention had not found it after 2,000 updates.
- Gu and Dao 2023 ("Mamba", section 4.1) on induction heads, L = 256 and 16 ids, new sequences in every step; and Poli
  et al. 2024 (athms/mad-lab configs/tasks/) on noisy recall and copying.

Here: 4,000 updates, with sequences that are new in every one. Labels are where an answer can be known,
`labels="known"`, and none on the other tokens, which nothing decides: with all of them attention had not found the
answers of recall after 2,500 updates at L = 64. The first 1,200 updates see 64 tokens, a warm-up of the sequence length
(Li et al. 2022): without it attention had not found them after 2,000 updates at L = 256. PyTorch's
initial weights, which are larger than 0.02 at width 64; rotary positions of base 100, since that of 10,000 is for
contexts of thousands. Hyena's windows decay slowly: with the published ones, under which most channels hardly see as
far as a sequence reaches, 93% of the validation answers of recall at L = 64 were right after 4,000 updates, with these
99% after 2,000, and at L = 256 most errors were at distances beyond 128. Of the learning rates 1e-3 and 3e-3 the better
one for attention and Hyena, by short trials on recall. A run ends when 99.9% of the validation answers are right.
"""

from pathlib import Path
from typing import Any

from longconv.training import SyntheticConfig

from .recipe import OURS, Recipe

LENGTH = 256
SIZES = (6_400, 512, 512)  # of which the first only says what an epoch is, since rows are always new
#: Name -> vocabulary, other options, and what is followed.
TASKS: dict[str, tuple[int, dict[str, Any], str]] = {
    "recall": (30, {"labels": "known"}, "Poli et al. 2023, appendix A.1"),
    "mqar": (64, {"random_non_queries": False}, "Arora et al. 2023, HazyResearch/zoology iclr24_zoology_figure2"),
    "induction": (16, {"labels": "known"}, "Gu and Dao 2023, section 4.1.2"),
    "copying": (16, {}, "Arjovsky et al. 2016, and Poli et al. 2024, athms/mad-lab"),
    "selective_copying": (16, {}, "Gu and Dao 2023, section 4.1.1, and Poli et al. 2024, athms/mad-lab"),
    "noisy_recall": (
        32,
        {"noise": 0.2, "labels": "known"},
        "Poli et al. 2024, athms/mad-lab noisy-in-context-recall.yml",
    ),
}
#: Name in a recipe -> pattern of mixers.
MIXERS = {
    "attention": "attention",
    "hyena": "hyena",
    "multi_hyena": "multi_hyena",
    "sgconv": "sgconv",
    "multires": "multires",
    "tcnca": "tcnca",
    "mega": "mega",
    "hyena-attention": "hyena attention",
}
#: Peak learning rates; 3e-3 for the others.
RATES = {"attention": 1e-3, "hyena-attention": 1e-3}
#: The first rows of training have so many tokens where all others have more, and there are so many of them.
SHORT_LENGTH, SHORT_ROWS = 64, 1_200 * 32
CHUNK = 64  # of MEGA's and TCNCA's attention, which else would be attention to all
#: Hyena's filters as in safari, with windows that decay to 1% after 2 to 10 lengths, rather than after 0.3 to 1.5.
FILTER: dict[str, Any] = {
    "name": "hyena",
    "emb_dim": 5,
    "order": 64,
    "w": 10.0,
    "fast_decay_pct": 2.0,
    "slow_decay_pct": 10.0,
}
BASE: dict[str, Any] = {
    "layers": 2,
    "hidden_size": 64,
    "intermediate_size": 256,
    "activation": "gelu",
    "norm": "layer",
    "initializer_range": None,
    "batch_size": 32,
    "weight_decay": 0.1,
    "beta2": 0.98,
    "warmup": 0.05,
    "schedule": "cosine",
    "steps": 4_000,
    "stop_accuracy": 0.999,
    "evaluate_every": 200,
    "evaluate_batches": 0,
    "save_every": 0,
    "log_every": 25,
}


def configuration(task: str, mixer: str, length: int = LENGTH) -> SyntheticConfig:
    """The configuration of a task and a mixer at a length, whose output is `runs/synthetic.TASK.MIXER`.

    Args:
        task: a key of `TASKS`.
        mixer: a key of `MIXERS`.
        length: of the sequences. MQAR has length // 16 pairs, TCNCA as many convolutions as reach over all.

    Raises:
        ValueError: there is no such task or mixer.
    """
    for kind, name, known in (("task", task, TASKS), ("mixer", mixer, MIXERS)):
        if name not in known:
            raise ValueError(f"no recipe has the {kind} {name!r}; there are: {', '.join(known)}")
    vocabulary, options, _ = TASKS[task]
    short = length > SHORT_LENGTH
    pairs = {"num_kv_pairs": max(1, length // 16)} if task == "mqar" else {}
    fewer = {"num_kv_pairs": SHORT_LENGTH // 16} if task == "mqar" and short else {}
    return SyntheticConfig(
        output=Path("runs") / f"synthetic.{task}.{mixer}",
        task=f"synthetic/{task}",
        task_options={**options, **pairs, "sizes": list(SIZES), "fresh": True},
        length=length,
        vocab_size=vocabulary,
        short_length=SHORT_LENGTH if short else None,
        short_rows=SHORT_ROWS if short else 0,
        short_options=fewer,
        lr=RATES.get(mixer, 3e-3),
        mixers=MIXERS[mixer],
        mixer_options={name: _options(name, length) for name in MIXERS[mixer].split()},
        **BASE,
    )


def _options(mixer: str, length: int) -> dict[str, Any]:
    taps, depth = 4, 1
    while taps**depth < length + 3:  # the longest rows have three tokens more
        depth += 1
    options: dict[str, dict[str, Any]] = {
        "attention": {"num_heads": 1, "rope_theta": 100.0},
        "hyena": {"order": 2, "filter": FILTER},
        "multi_hyena": {"num_heads": 8, "filter": FILTER},
        "sgconv": {"filter": {"name": "sgconv", "kernel_dim": 64}},
        "multires": {"kernel_size": 4, "output": "glu"},
        "tcnca": {"num_layers": depth, "kernel_size": taps, "dilation_factor": taps, "chunk_size": CHUNK},
        "mega": {"chunk_size": CHUNK},
    }
    return options[mixer]


RECIPES: dict[str, Recipe] = {
    f"synthetic.{task}.{mixer}": Recipe(f"synthetic.{task}.{mixer}", configuration(task, mixer), OURS + source)
    for task, (_, _, source) in TASKS.items()
    for mixer in MIXERS
}
