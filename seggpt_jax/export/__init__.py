"""Networks as single files for programs without this package: ONNX and StableHLO.

In: a SegGPT. Out: a file that predicts one tile of the query from K prompts, the feature ensemble included. All three
inputs are uint8 pixels of half a canvas, and the batch has any size:
- query `[B, H, W, 3]`,
- prompt_images `[B, K, H, W, 3]`,
- prompt_colors `[B, K, H, W, 3]`, the label maps of the prompts in the colors of a palette.
The output is colors `[B, H, W, 3]`, float32 values of 0..255.
"""

from seggpt_jax.export.onnx_graph import build_onnx as build_onnx
from seggpt_jax.export.stablehlo import build_stablehlo as build_stablehlo
