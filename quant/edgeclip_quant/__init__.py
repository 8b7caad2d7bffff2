"""Bundle in, smaller bundle out. Nothing is here yet: fp16 and int8 are the next piece of work."""
