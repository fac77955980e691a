"""Attention over a grid of patches with decomposed relative positions (MViTv2, arXiv 2112.01526, section 4.1).

The logit of the key at (i, j) for the query at (y, x) is

    scale * q . k  +  q . R_h[y - i]  +  q . R_w[x - j]

with one table per axis, and the UNSCALED query in the last two terms. Every implementation is a function of

    qkv        queries, keys and values of all heads as the linear layer returns them,
               `[B, rows * cols, 3, heads, head_dim]`
    rel_pos_h  one embedding for each signed distance between rows, `[distances, head_dim]`
    rel_pos_w  one embedding for each signed distance between columns
    grid       (rows, cols)

and returns `[B, rows * cols, heads, head_dim]`. `reference` is the formula written down, which the tests hold the
others against:

    reference    the formula, with all scores in memory; any device
    folded       one matrix product for the logits, all scores in memory; any device
    blockwise    the scores of a few heads at a time, in a CPU's cache
    cudnn        cuDNN's flash attention, scores never in memory; NVIDIA, bfloat16
    cudnn_parts  cuDNN's flash attention on parts of the keys, for GPUs other than Hopper; NVIDIA, bfloat16
    splash       JAX's Pallas kernel, scores never in memory; TPU

`dispatch.choose` selects one of them.
"""
