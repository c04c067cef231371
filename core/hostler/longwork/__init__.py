"""Long work of commands: steps in processes of their own (steps.py, runner.py), a folder that outlives kill -9 (folder.py)."""
