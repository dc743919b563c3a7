"""How likely a model finds a text: bounds of its log-likelihood, with their standard errors."""
