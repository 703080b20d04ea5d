"""The state of one parameter as different optimizers keep it, told apart by its content and converted to ours."""
