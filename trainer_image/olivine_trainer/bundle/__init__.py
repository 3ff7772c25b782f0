"""Adapters of one base as one multi-adapter ONNX model, each of them proven against PyTorch."""
