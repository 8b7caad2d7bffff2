"""ONNX graphs of a bundle without torch: what they are made of, and the passes that shape them for one target.

`passes.lower` is the way from a trace to what a target runs. Export traces towers and lowers them by it; quant
rewrites graphs with the same parts. Nothing here imports torch.
"""
