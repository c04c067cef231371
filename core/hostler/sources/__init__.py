"""Model sources that come with hostler; each is a plugin that registers one scheme."""
