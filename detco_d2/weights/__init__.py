"""Weights -> anywhere: name maps, safe reading, and the hand-over of a backbone to a detector."""
