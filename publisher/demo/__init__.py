"""`edgewright demo`: the product's main job, end to end, by the commands that a user types."""
