"""The study of the training objective behind docs/study.md."""
