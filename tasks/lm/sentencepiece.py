"""Learning the pieces of a `SentencePieceTokenizer` from text with SentencePiece's byte-pair trainer.

Byte pairs rather than SentencePiece's unigram model: on Python source, at the same vocabulary, fewer tokens after a
tenth of the time.
"""

import io
import itertools
import re
from collections.abc import Iterable, Iterator

from longconv.tasks.extras import require
from longconv.tasks.lm.tokenizers import END_OF_TEXT, FIRST_PIECE, PAD, SentencePieceTokenizer

# SentencePiece cuts newlines off, sets tabs aside, takes "▁" for a space and skips lines with a NUL. Private characters
# stand in for the four while it learns, and are translated back in the pieces.
_STAND_INS = {"\n": "\ue000", "\t": "\ue001", "▁": "\ue002", "\0": "\ue003"}
_TO_TRAINER = str.maketrans(_STAND_INS)
_FROM_TRAINER = str.maketrans({stand_in: real for real, stand_in in _STAND_INS.items()} | {"▁": " "})
# A line as far as a piece may reach: with the newlines after it, and never past a real private character.
_LINE = re.compile(r"[^\n\ue000-\ue003]*\n+|[^\n\ue000-\ue003]+")
_LONGEST_LINE = 4096


def train_sentencepiece(texts: Iterable[str], vocab_size: int, stride: int = 1) -> SentencePieceTokenizer:
    """Learn a vocabulary of exactly `vocab_size` ids, bytes and special tokens included, from `texts`.

    Reads every `stride`-th line. The result depends on nothing but the arguments.
    Raises ValueError if there is no text, if `vocab_size` is too small for its characters or too large for its variety,
    and ImportError naming the extra if sentencepiece is missing.
    """
    if vocab_size <= FIRST_PIECE:
        raise ValueError(f"vocab_size must be above {FIRST_PIECE} (256 bytes, {END_OF_TEXT}, {PAD}), not {vocab_size}")
    trainer = require("sentencepiece").SentencePieceTrainer
    model = io.BytesIO()
    try:
        trainer.train(
            sentence_iterator=itertools.islice(_lines(texts), None, None, stride),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size + 1,  # its own <unk>, which nothing needs where there are bytes
            byte_fallback=True,
            control_symbols=[END_OF_TEXT, PAD],
            bos_id=-1,
            eos_id=-1,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=4 * _LONGEST_LINE,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"no vocabulary of {vocab_size} from these texts: {_reason(error)}") from error
    return SentencePieceTokenizer(_pieces(model.getvalue(), vocab_size))


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for match in _LINE.finditer(text):
            line = match.group().translate(_TO_TRAINER)
            # The trainer drops what is too long; the pieces of a long line are worth learning as well.
            for start in range(0, len(line), _LONGEST_LINE):
                yield line[start : start + _LONGEST_LINE]


def _pieces(model: bytes, vocab_size: int) -> list[str]:
    """The learned pieces in the trainer's order of merges, single characters last."""
    processor = require("sentencepiece").SentencePieceProcessor(model_proto=model)
    pieces = [
        processor.id_to_piece(i).translate(_FROM_TRAINER)
        for i in range(processor.get_piece_size())
        if not (processor.is_unknown(i) or processor.is_control(i) or processor.is_byte(i))
    ]
    assert len(pieces) == vocab_size - FIRST_PIECE, (len(pieces), vocab_size)
    return pieces


def _reason(error: RuntimeError) -> str:
    """The trainer's complaint in the user's terms: its sizes count the <unk> that is dropped here."""
    message = str(error)
    if match := re.search(r"too high .*<= (\d+)", message):
        return f"they have pieces for at most {int(match[1]) - 1}"
    if match := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return f"their characters alone need {int(match[1]) - 1}"
    if "sentences_.empty()" in message:
        return "they are empty"
    return message
