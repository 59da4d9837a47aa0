"""Whether recent annotation runs see what the model was trained on."""
