"""The definition of what is measured: studies, the matrix of cells, the arms timed together, weights and inputs."""
