"""`longconv evaluate`."""

import json
from pathlib import Path
from typing import Literal


def evaluate(
    model: Path,
    /,
    *,
    data: Path | None = None,
    split: Literal["train", "validation", "test"] = "test",
    length: int | None = None,
    max_bytes: int | None = None,
    batch_size: int = 8,
    max_batches: int | None = None,
    json_output: bool = False,
) -> None:
    """Measure a model on what it was not trained on: a language model by its bits per byte and perplexity on text, a
    classifier by its accuracy on its task.

    Args:
        model: folder of a trained or distilled model.
        data: text file or folder; default the source of Python's own standard library. Of a classifier, the folder of
            its task's files; default where they were in training.
        split: which part of the corpus (the same files as in training, given the same data).
        length: tokens in a sequence of text; default what the model was trained for, at most its longest.
        max_bytes: use at most so many bytes of the corpus of text.
        batch_size: sequences at a time.
        max_batches: stop after so many.
        json_output: print one JSON object instead of a line of text.
    """
    from longconv import tasks
    from longconv.models import load_model
    from longconv.tasks.lm import load_tokenizer
    from longconv.training import TaskCard, evaluate_classifier

    if (model / TaskCard.FILE).exists():
        if length is not None or max_bytes is not None:
            raise ValueError(
                "length and max_bytes are for language models: a classifier's task has sequences of its own"
            )
        metrics = evaluate_classifier(model, split, data_dir=data, batch_size=batch_size, max_batches=max_batches)
        said = f"{split}: accuracy {metrics['accuracy']:.4f}, loss {metrics['loss']:.4f} nats"
        print(json.dumps(metrics) if json_output else said)
        return
    loaded = load_model(model)
    limit = loaded.config.max_position_embeddings
    if length is not None and length > limit:
        raise ValueError(f"length {length} is longer than the model's max_position_embeddings = {limit}")
    task = tasks.get(
        "lm", data=data, tokenizer=load_tokenizer(model), length=length or min(1024, limit), max_bytes=max_bytes
    )
    metrics = task.evaluate(loaded, split, batch_size=batch_size, max_batches=max_batches)
    if json_output:
        print(json.dumps(metrics))
    else:
        print(
            f"{split}: {metrics['bits_per_byte']:.4f} bits per byte, {metrics['loss']:.4f} nats per token, "
            f"perplexity {metrics['perplexity']:.2f} per token"
        )
