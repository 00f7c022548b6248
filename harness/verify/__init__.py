"""Whether an arm computes what it should: bounds on what rounding may do, and the output check against them."""
