"""Station 2: the equations of the paper as pure functions of tensors. No IO, no model, no config object."""
