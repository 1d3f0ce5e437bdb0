"""Visual Commonsense Reasoning: Q->A, QA->R and Q->AR."""
