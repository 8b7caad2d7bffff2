"""The names of the operators that graphs are traced with and lowered to.

A trace holds standard ONNX operators, and one node of the domain `edgeclip` for each rotation, attention and RMSNorm
(`edgeclip_export.operators` is what torch traces). `edgeclip_graph.passes` replaces those nodes.
"""

DOMAIN = "edgeclip"
ROTARY, ATTENTION = "RotaryEmbedding", "Attention"
CAUSAL_ATTENTION, RMS_NORM = "CausalAttention", "RmsNorm"
# The attribute of an Attention that holds ALiBi's slopes, one for each head; absent without ALiBi.
SLOPES = "alibi_slopes"

# onnxruntime's own operators.
CONTRIB = "com.microsoft"
FUSED_ATTENTION, FUSED_PRODUCT = "MultiHeadAttention", "FusedMatMul"
# What the reference adds to the score of a masked key; in fp32 its exponential is exactly zero.
MASKED_SCORE = -10000.0
