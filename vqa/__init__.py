"""Visual Question Answering (VQA v2)."""
