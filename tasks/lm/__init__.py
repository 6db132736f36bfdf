"""Language modelling on local text: `LanguageModelling` puts the parts of this folder together.

corpus.py      which files, and the text of each        splitting.py   train, validation and test without leakage
tokenizers.py  text <-> token ids, saved for `AutoTokenizer`   sentencepiece.py   learning a vocabulary
packing.py     token streams and blocks of one length   metrics.py     bits per byte and perplexity
"""

from longconv.tasks.lm.corpus import Corpus, Document, open_corpus
from longconv.tasks.lm.metrics import LanguageModelMetrics, token_nll
from longconv.tasks.lm.packing import Collator
from longconv.tasks.lm.sentencepiece import train_sentencepiece
from longconv.tasks.lm.task import LanguageModelling
from longconv.tasks.lm.tokenizers import ByteTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "ByteTokenizer",
    "Collator",
    "Corpus",
    "Document",
    "LanguageModelMetrics",
    "LanguageModelling",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "open_corpus",
    "token_nll",
    "train_sentencepiece",
]
