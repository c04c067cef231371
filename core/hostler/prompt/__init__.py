"""From messages to prompt text; runs in the worker, beside its loop."""
