"""A simulator as a linear map: ridge regression, and what follows from it.

The library's own: not part of what is promised to others.
"""
