"""What a request cost, counted as Jina's API counts it.

Texts count their tokens, with the opening and closing one and the instruction. Images count tiles of 512 x 512
pixels, a partly filled one as a whole (https://jina.ai/embeddings, jina-clip-v2).
"""

TILE_PX = 512
TOKENS_PER_TILE = 4000


def image_tokens(width: int, height: int) -> int:
    """The tokens of an image of so many pixels, before it is resized: 4,000 for each tile begun."""
    return -(-width // TILE_PX) * -(-height // TILE_PX) * TOKENS_PER_TILE
