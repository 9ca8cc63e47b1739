"""A simulator as a linear map: ridge regression, and what follows from it."""
