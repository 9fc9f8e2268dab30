"""Theory's predictions beside measured values: one file per experiment, each with a verdict."""
