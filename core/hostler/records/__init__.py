"""What users keep: assistants, threads, messages, files, runs, and the log of events. Floor 1; on SQLAlchemy."""
