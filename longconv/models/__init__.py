"""Models in the Hugging Face ecosystem, and the only place that imports its model classes.

Importing this package registers them with the Auto classes: `AutoModelForCausalLM.from_pretrained(folder)` just works.
`configuration.py` -> `norms.py`, `blocks.py` -> `modeling.py` (backbone) -> `heads.py` (language model) and
`classifiers.py`; `cache.py` is what `generate()` carries along; `checkpoint.py` writes and reads folders that are whole
or not there. `engine.py` serves many sequences at once.
"""

try:
    import transformers
except ImportError as error:
    raise ImportError("longconv.models needs transformers: pip install 'longconv[train]'") from error

from .cache import LongConvCache
from .checkpoint import load_model, save_model
from .classifiers import LongConvForSequenceClassification, LongConvForSequencePairClassification
from .configuration import LongConvConfig
from .engine import DecodeEngine, Request
from .heads import LongConvForCausalLM
from .modeling import LongConvModel, LongConvPreTrainedModel
from .sampling import SamplingOptions

transformers.AutoConfig.register(LongConvConfig.model_type, LongConvConfig)
transformers.AutoModel.register(LongConvConfig, LongConvModel)
transformers.AutoModelForCausalLM.register(LongConvConfig, LongConvForCausalLM)
# Which of the two a folder has, its config.json says; the first is the default.
transformers.AutoModelForSequenceClassification.register(
    LongConvConfig, (LongConvForSequenceClassification, LongConvForSequencePairClassification)
)

__all__ = [
    "DecodeEngine",
    "LongConvCache",
    "LongConvConfig",
    "LongConvForCausalLM",
    "LongConvForSequenceClassification",
    "LongConvForSequencePairClassification",
    "LongConvModel",
    "LongConvPreTrainedModel",
    "Request",
    "SamplingOptions",
    "load_model",
    "save_model",
]
