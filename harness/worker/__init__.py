"""The process that measures, and the only one that imports a framework: requests, the timed region, training."""
