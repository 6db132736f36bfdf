"""Models in the Hugging Face ecosystem, and the only place that imports its model classes.

Importing this package registers them with the Auto classes: `AutoModelForCausalLM.from_pretrained(folder)` just works.
`configuration.py` -> `modeling.py` (blocks, backbone) -> `heads.py`; `cache.py` is what `generate()` carries along;
`checkpoint.py` writes and reads folders that are whole or not there. `engine.py` serves many sequences at once.
"""

try:
    import transformers
except ImportError as error:
    raise ImportError("longconv.models needs transformers: pip install 'longconv[train]'") from error

from .cache import LongConvCache
from .checkpoint import load_model, save_model
from .configuration import LongConvConfig
from .engine import DecodeEngine, Request
from .heads import LongConvForCausalLM, LongConvForSequenceClassification
from .modeling import LongConvModel, LongConvPreTrainedModel
from .sampling import SamplingOptions

transformers.AutoConfig.register(LongConvConfig.model_type, LongConvConfig)
transformers.AutoModel.register(LongConvConfig, LongConvModel)
transformers.AutoModelForCausalLM.register(LongConvConfig, LongConvForCausalLM)
transformers.AutoModelForSequenceClassification.register(LongConvConfig, LongConvForSequenceClassification)

__all__ = [
    "DecodeEngine",
    "LongConvCache",
    "LongConvConfig",
    "LongConvForCausalLM",
    "LongConvForSequenceClassification",
    "LongConvModel",
    "LongConvPreTrainedModel",
    "Request",
    "SamplingOptions",
    "load_model",
    "save_model",
]
