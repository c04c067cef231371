"""Conversion of models into this engine's format: what `hostler convert` does. Nothing here imports torch or onnxruntime;
`steps/` is run in processes of its own."""
