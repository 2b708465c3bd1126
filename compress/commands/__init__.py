"""The commands, one file a subject. Results go to stdout, progress to stderr."""
