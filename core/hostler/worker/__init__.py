"""Worker processes: the child that runs one engine with one model, and the supervisor that looks after it."""
