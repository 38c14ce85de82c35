"""Distillation: a student whose one step equals several of its teacher's, round by round."""
