"""Wire shapes: what clients send, checked and turned into hostler's values. One module a noun; no runtime, no HTTP here."""
