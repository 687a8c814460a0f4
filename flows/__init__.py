"""What happens, in order: one flow per file, and the command line."""
