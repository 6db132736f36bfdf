"""SentencePiece: learning the pieces of a `SentencePieceTokenizer` from text, and reading models of others.

They are learned by SentencePiece's byte-pair trainer rather than its unigram model: on Python source, at the same
vocabulary, that gives fewer tokens after a tenth of the time.
"""

import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from longconv.tasks.extras import require
from longconv.tasks.lm.huggingface import HuggingFaceTokenizer
from longconv.tasks.lm.tokenizers import END_OF_TEXT, FIRST_PIECE, PAD, SentencePieceTokenizer

# SentencePiece cuts newlines off, sets tabs aside, takes "▁" for a space and skips lines with a NUL. Private characters
# stand in for the four while it learns, and are translated back in the pieces.
_STAND_INS = {"\n": "\ue000", "\t": "\ue001", "▁": "\ue002", "\0": "\ue003"}
_TO_TRAINER = str.maketrans(_STAND_INS)
_FROM_TRAINER = str.maketrans({stand_in: real for real, stand_in in _STAND_INS.items()} | {"▁": " "})
# A line as far as a piece may reach: with the newlines after it, and never past a real private character.
_LINE = re.compile(r"[^\n\ue000-\ue003]*\n+|[^\n\ue000-\ue003]+")
_LONGEST_LINE = 4096
# Types of pieces in a model file; bytes are 6, ordinary pieces 1.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


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


def load_sentencepiece(file: str | os.PathLike[str]) -> HuggingFaceTokenizer:
    """The tokenizer of a SentencePiece ``.model`` file, byte-pair or unigram, with the ids that SentencePiece gives.

    It is translated to a fast tokenizer of Hugging Face, so that it can be saved beside a model. A literal "▁" is a
    space to SentencePiece; models that normalise text are not lossless.

    Raises FileNotFoundError if there is no such file, and ValueError if it is no model of these kinds or has no token
    that could end a document.
    """
    with open(file, "rb") as stream:
        raw = stream.read()
    proto = require("sentencepiece.sentencepiece_model_pb2").ModelProto()
    try:
        proto.ParseFromString(raw)
    except Exception as error:  # protobuf's own class of errors
        raise ValueError(f"{file} is not a SentencePiece model: {error}") from error
    kind = proto.trainer_spec.model_type
    if not proto.pieces or kind not in (1, 2):
        raise ValueError(f"{file} is not a SentencePiece model of byte pairs or of the unigram kind")
    roles = {piece.piece: piece.type for piece in proto.pieces}
    unknown = next(piece.piece for piece in proto.pieces if piece.type == _UNKNOWN)
    hf = require("tokenizers")
    rust = hf.Tokenizer(_model(proto, unknown))
    _set_normaliser(rust, proto)
    rust.add_special_tokens([token for token, role in roles.items() if role in (_UNKNOWN, _CONTROL)])
    rust.add_tokens([hf.AddedToken(token, normalized=False) for token, role in roles.items() if role == _USER_DEFINED])
    spec = proto.trainer_spec
    named = {"bos_token": spec.bos_id, "eos_token": spec.eos_id, "pad_token": spec.pad_id}
    tokens = {name: proto.pieces[i].piece for name, i in named.items() if 0 <= i < len(proto.pieces)}
    tokens = {name: token for name, token in tokens.items() if roles[token] == _CONTROL}
    fast = require("transformers").PreTrainedTokenizerFast(tokenizer_object=rust, unk_token=unknown, **tokens)
    try:
        return HuggingFaceTokenizer(fast)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _model(proto: Any, unknown: str) -> Any:
    """The model of `tokenizers` with the pieces of `proto`."""
    models, byte_fallback = require("tokenizers").models, proto.trainer_spec.byte_fallback
    if proto.trainer_spec.model_type == 1:
        scores = [(piece.piece, piece.score) for piece in proto.pieces]
        unk_id = next(i for i, piece in enumerate(proto.pieces) if piece.type == _UNKNOWN)
        return models.Unigram(scores, unk_id=unk_id, byte_fallback=byte_fallback)
    vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    ordinary = {piece.piece: piece.score for piece in proto.pieces if piece.type == 1}
    # A piece is what it merges from, in any way; the best score is merged first.
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(ordinary, key=lambda piece: -ordinary[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in ordinary and piece[cut:] in ordinary
    ]
    return models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)


def _set_normaliser(rust: Any, proto: Any) -> None:
    """What SentencePiece does to a text before and after: its rules for letters, spaces, the space in front."""
    hf, spec = require("tokenizers"), proto.normalizer_spec
    steps = [hf.normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [hf.normalizers.Strip(), hf.normalizers.Replace(hf.Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(hf.normalizers.Prepend("▁"))
    rust.normalizer = hf.normalizers.Sequence([*steps, hf.normalizers.Replace(" ", "▁")])
    if not any("▁" in piece.piece[1:] for piece in proto.pieces):
        # No piece reaches across a space, so words can be taken one by one.
        rust.pre_tokenizer = hf.pre_tokenizers.Split("▁", "merged_with_next")
    strip = [hf.decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
    rust.decoder = hf.decoders.Sequence(
        [hf.decoders.Replace("▁", " "), hf.decoders.ByteFallback(), hf.decoders.Fuse(), *strip]
    )
