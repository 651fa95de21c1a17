"""Stages of one candidate: pure torch, ONNX and runtimes; knows neither Optuna nor the command line."""
