"""A bundle's files: checked when opened, staged when written, proved by their self-test."""
