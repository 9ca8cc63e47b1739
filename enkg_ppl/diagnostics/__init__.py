"""Can a posterior be trusted? Checks of a finished run."""
