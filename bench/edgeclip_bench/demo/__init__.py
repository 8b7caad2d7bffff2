"""`edgeclip demo`: the small trained model, what trained it, and the run that shows it."""
