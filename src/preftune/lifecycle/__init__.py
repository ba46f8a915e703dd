"""The steps that all training methods share: read the data, load the model, plan, train, save."""
