"""Verification of an arm's outputs: bounds on the effect of rounding, and the output check that applies them."""
