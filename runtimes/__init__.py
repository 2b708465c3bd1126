"""What a device app imports: open a bundle, run it. Needs numpy, and a backend once a session of it is opened."""
