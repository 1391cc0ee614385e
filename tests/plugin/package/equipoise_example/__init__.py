"""A method, a model with two forks and a data set for equipoise."""
