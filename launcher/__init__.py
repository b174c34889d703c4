"""The launcher decides: it plans, checks and starts runs from a login node, and never imports torch."""
