"""Queues in front of the graphs: fair between requests, one worker each."""
