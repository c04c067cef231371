"""Steps of a conversion. Each module has `run(arguments, show) -> result`, all JSON; `__main__.py` runs one in a process of
its own. They import the heavy libraries, and nothing of hostler."""
