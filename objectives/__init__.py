"""A candidate in, its measured objectives out; knows neither Optuna nor the test split."""
