"""The only package that knows Optuna: studies, trials and the commands."""
