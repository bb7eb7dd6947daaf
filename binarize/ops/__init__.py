"""Pure tensor functions in plain torch: sign, bypass, bit packing."""

from binarize.ops.bits import pack_signs, unpack_signs
from binarize.ops.bypass import channel_adaptive_bypass, resample_bypass
from binarize.ops.sign import sign

__all__ = ["channel_adaptive_bypass", "pack_signs", "resample_bypass", "sign", "unpack_signs"]
