"""What `hostler tune` does: measures a model on this machine, requantizes it, recommends, keeps what is chosen. Nothing here
imports llama.cpp or numpy; `steps/` is run in processes of its own."""
