"""What tuning does in processes of its own, each step a module with `run`. They import llama.cpp and numpy."""
