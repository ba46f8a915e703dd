"""Several processes (ranks) that train one model together: launch, communication, shares of the work, failures."""
