"""The small trained model: scenes, captions in ten languages, tokenizer, training, and what came of it."""
