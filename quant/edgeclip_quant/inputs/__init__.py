"""Inputs that calibrate and prove a smaller bundle, and the values that layers get from them."""
