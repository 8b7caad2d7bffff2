"""The names of the operators that graphs are traced with.

A trace holds standard ONNX operators, and one node of the domain `edgeclip` for each rotation and each attention
(`edgeclip_export.operators` is what torch traces). `edgeclip_graph.passes` replaces those nodes.
"""

DOMAIN = "edgeclip"
ROTARY, ATTENTION = "RotaryEmbedding", "Attention"
