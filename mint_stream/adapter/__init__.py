"""An adapter as numbers: A and B by layer, to and from PEFT's two files, and as one contiguous block that kernels read.

delta(x) = scaling * (x A^T) B^T        x [rows, in], A [r, in], B [out, r]
"""

from mint_stream.adapter.block import AdapterBlock, BlockForm, BlockLayer, Place
from mint_stream.adapter.peft_config import CONFIG_FILE
from mint_stream.adapter.targets import LayerShape, check_targets, grouped_targets, pattern_of
from mint_stream.adapter.weights import TENSORS_FILE, AdapterLayer, AdapterWeights, fresh_parameters

__all__ = [
    "CONFIG_FILE",
    "TENSORS_FILE",
    "AdapterBlock",
    "AdapterLayer",
    "AdapterWeights",
    "BlockForm",
    "BlockLayer",
    "LayerShape",
    "Place",
    "check_targets",
    "fresh_parameters",
    "grouped_targets",
    "pattern_of",
]
