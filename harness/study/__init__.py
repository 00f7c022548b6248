"""What is to be measured: a study, the matrix of its cells, what is timed side by side, weights and inputs."""
