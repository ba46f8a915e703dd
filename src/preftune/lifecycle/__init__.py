"""The life of a run, the same for every training method: read the data, load the model, plan, train, save."""
