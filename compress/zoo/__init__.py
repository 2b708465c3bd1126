"""Models that come with the project: the demo's network, its task, and how it is trained."""
