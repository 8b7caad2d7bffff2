"""Inputs that calibrate and prove a smaller bundle, and what layers see of them."""
