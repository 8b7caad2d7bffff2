"""Texts and images as users have them become arrays as the graphs take them."""
