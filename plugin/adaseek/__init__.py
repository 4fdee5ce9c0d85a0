"""AdaSeek: adaptive hierarchical tuning of gen-AI workflows."""
